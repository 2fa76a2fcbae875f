# Builds every fuzz target tests/fuzz/fuzz_*.c with clang, libFuzzer and the sanitizers; run from the repository root.
# Kernels and the CPU backend are not linked: no parser of untrusted files may reach them.
# Compiled without -fopenmp, the pragmas do nothing; a few calls of its library remain.
BUILD ?= build-fuzz
FUZZ_CC ?= clang
SRC := $(filter-out llmc/cpu/% llmc/cuda/% llmc/mpi/%,$(wildcard llmc/*/*.c))
FLAGS := -std=c11 -D_GNU_SOURCE -O1 -g -I. -fno-omit-frame-pointer -Wno-unknown-pragmas \
         -fsanitize=address,undefined -fno-sanitize-recover=all -MMD -MP
LDLIBS := -fopenmp -lcjson -linih -lzstd -lz -lxxhash -lm -lpthread -ldl
OBJ := $(SRC:%.c=$(BUILD)/obj/%.o) $(BUILD)/obj/tests/fuzz/fuzz_file.o
TARGETS := $(patsubst tests/fuzz/%.c,$(BUILD)/%,$(filter-out %/fuzz_file.c,$(wildcard tests/fuzz/fuzz_*.c)))

all: $(TARGETS)
$(BUILD)/libllmc.a: $(OBJ)
	@rm -f $@; ar rcs $@ $^
$(BUILD)/fuzz_%: tests/fuzz/fuzz_%.c $(BUILD)/libllmc.a
	@$(FUZZ_CC) $(FLAGS) -fsanitize=fuzzer -MF $@.d -o $@ $< $(BUILD)/libllmc.a $(LDLIBS)
$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	@$(FUZZ_CC) $(FLAGS) -fsanitize=fuzzer-no-link -c -o $@ $<
.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
