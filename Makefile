# Tokamak: `make help` lists the targets. All build outputs are under $(BUILD).

BUILD   ?= build
ifeq ($(origin CC),default)
CC      := cc
endif
V       ?= 0
Q       := $(if $(filter 1,$(V)),,@)

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Werror
CSTD     := -std=c11 -D_GNU_SOURCE
OPT      ?= -O3
SANITIZE ?=
CFLAGS   ?= -g
ALL_CFLAGS := $(CSTD) $(OPT) $(CFLAGS) $(WARNINGS) -ffp-contract=fast -fno-math-errno -fno-trapping-math \
              -fPIC -fvisibility=hidden -fopenmp -I. $(SANITIZE) -MMD -MP
LDLIBS   := -lcjson -linih -lzstd -lz -lxxhash -lm -lpthread -ldl -fopenmp
TEST_LDLIBS := -lcmocka

# CPU kernels (*_kernels.c) are compiled once per instruction set; see llmc/cpu/isa.h.
MACHINE := $(shell $(CC) -dumpmachine 2>/dev/null)
ifneq ($(filter x86_64%,$(MACHINE)),)
ISAS := generic avx2 avx512 avx512bf16
else
ISAS := generic
endif
ISA_generic    := -Wno-psabi
ISA_avx2       := -mavx2 -mfma -Wno-psabi
ISA_avx512     := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512 -Wno-psabi
ISA_avx512bf16 := $(ISA_avx512) -mavx512bf16

LIB_SRC     := $(filter-out %_kernels.c,$(filter-out llmc/mpi/%,$(wildcard llmc/*/*.c)))
KERNEL_SRC  := $(wildcard llmc/cpu/*_kernels.c)
TRAIN_SRC   := $(wildcard train_gpt.cu)
PREP_SRC    := $(wildcard data/*.c data/*/*.c)
CASES_SRC   := $(wildcard dev/cases/*.c)
BENCH_SRC   := $(wildcard dev/bench/*.c) $(CASES_SRC)
TEST_SRC    := $(wildcard tests/*/test_*.c)
TEST_COMMON := $(wildcard tests/support/*.c) $(CASES_SRC)

obj = $(patsubst %,$(BUILD)/obj/%.o,$(basename $(1)))
LIB_OBJ     := $(call obj,$(LIB_SRC)) $(foreach isa,$(ISAS),$(patsubst %.c,$(BUILD)/obj/%.$(isa).o,$(KERNEL_SRC)))
LIB         := $(BUILD)/libllmc.a
TESTS       := $(patsubst %.c,$(BUILD)/tests/%,$(notdir $(TEST_SRC)))
PROGRAMS    := $(if $(TRAIN_SRC),$(BUILD)/train_gpt) $(if $(PREP_SRC),$(BUILD)/prep) $(if $(BENCH_SRC),$(BUILD)/bench)
# Sub-makes use all cores unless -jN is given.
JOBS         = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc 2>/dev/null || echo 2))

.PHONY: all help config clean tests test test-asan fuzz quickstart bench-cpu bench-ranks bench-save gpu-check setup
all: $(PROGRAMS) mpi-if-found cuda-if-found ## build train_gpt, prep and bench, and the plug-ins if nvcc and mpicc are found (the default)
	@$(if $(PROGRAMS),:,echo 'nothing to build: train_gpt.cu, data/*.c and dev/bench/*.c are absent')

quickstart: ## a trained model from scratch: install, build, get text, train 90 s, sample
	@scripts/quickstart.sh

test: ## install missing packages, build everything, run all tests (ONLY=name: tests whose name contains it)
	@scripts/setup.sh
	@$(MAKE) --no-print-directory $(JOBS) all tests emu
	@tests/run.sh $(BUILD) $(ONLY)

# Leaks are checked where the leak checker works (not in some containers). gcc's frames for use-after-return are not
# aligned for AVX-512, so that check is off.
ASAN_MAKE = $(MAKE) --no-print-directory BUILD=build-asan OPT=-O1 CUDA=0 \
            SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'
test-asan: ## the same with AddressSanitizer and UBSan, in build-asan
	@scripts/setup.sh
	@$(ASAN_MAKE) $(JOBS) all tests emu
	@echo 'int main(void) { return 0; }' | $(CC) -fsanitize=address -x c -o build-asan/leak_check -
	@leaks=1; ASAN_OPTIONS=detect_leaks=1 build-asan/leak_check 2>/dev/null || { leaks=0; \
	    echo 'the leak checker does not work on this machine: leaks are not checked'; }; \
	ASAN_OPTIONS="detect_leaks=$$leaks:strict_string_checks=1:detect_stack_use_after_return=0:$$ASAN_OPTIONS" \
	TOKAMAK_EMU_ORDER=reverse UBSAN_OPTIONS="print_stacktrace=1:$$UBSAN_OPTIONS" tests/run.sh build-asan $(ONLY)

fuzz: ## fuzz the parsers of untrusted files (clang; FUZZ_SECONDS=5 each, ONLY=name: one)
	@scripts/setup.sh --fuzz
	@$(MAKE) --no-print-directory $(JOBS) -f tests/fuzz/fuzz.mk
	@tests/fuzz/run.sh build-fuzz $(ONLY)

bench-cpu: all ## speed of training steps on this CPU, compared with PyTorch and llm.c if found
	@dev/bench/bench_cpu.sh

bench-ranks: all ## cost of several ranks on this machine: speed, hidden communication, memory compared with the plan
	@dev/bench/bench_ranks.sh

bench-save: all ## cost of a checkpoint: the copy, and the slowdown of steps during its writing
	@dev/bench/bench_save.sh

gpu-check: ## build, test, sanitize and measure on this machine's GPU: one report
	@scripts/gpu_check.sh

setup: ## only install missing packages
	@scripts/setup.sh

clean: ## remove all build outputs
	$(Q)rm -rf $(BUILD) build-asan build-fuzz

config: ## print which CUDA toolkit, cuBLASLt, cuDNN, NCCL, GPU and MPI are found
	@scripts/find_cuda.sh
	@scripts/find_mpi.sh

help: ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile llmc/cuda/cuda.mk llmc/mpi/mpi.mk dev/emu/emu.mk
	@echo '  Variables: CC, CFLAGS, CUDA=0 and MPI=0 (no plug-in), CUDA_ARCHS, CUDA_HOME, OPT=-O3, SANITIZE, BUILD=build (output directory), V=1 (print commands)'

$(LIB): $(LIB_OBJ)
	@rm -f $@
	$(Q)$(AR) rcs $@ $(LIB_OBJ)

$(BUILD)/train_gpt: $(call obj,$(TRAIN_SRC)) $(LIB)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/prep: $(call obj,$(PREP_SRC)) $(LIB)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/bench: $(call obj,$(BENCH_SRC)) $(LIB)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)

tests: $(TESTS) ## build the test programs
$(BUILD)/libtests.a: $(call obj,$(TEST_COMMON))
	@rm -f $@
	$(Q)$(AR) rcs $@ $^
define test_rule
$(BUILD)/tests/$(basename $(notdir $(1))): $(call obj,$(1)) $(BUILD)/libtests.a $(LIB)
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(ALL_CFLAGS) -o $$@ $$^ $$(TEST_LDLIBS) $$(LDLIBS)
endef
$(foreach test,$(TEST_SRC),$(eval $(call test_rule,$(test))))

# Objects depend on their compile flags, and on a check that the libraries are installed.
FLAGS_NOW := $(CC) $(ALL_CFLAGS) $(foreach isa,$(ISAS),$(ISA_$(isa)))
$(BUILD)/flags: force | $(BUILD)/libraries
	@printf '%s\n' '$(FLAGS_NOW)' | cmp -s - $@ || printf '%s\n' '$(FLAGS_NOW)' > $@
$(BUILD)/libraries:
	@mkdir -p $(@D)
	@printf '#include <%s>\n' cjson/cJSON.h ini.h zstd.h zlib.h xxhash.h setjmp.h stdarg.h stddef.h stdint.h cmocka.h | \
	    $(CC) -x c -fsyntax-only - 2>$@.log || { cat $@.log >&2; \
	    echo 'A compiler or a library is missing (see above): run scripts/setup.sh, which installs them on Debian.' >&2; exit 1; }
	@rm -f $@.log; touch $@
.PHONY: force

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -c -o $@ $<
# train_gpt.cu is host code in the common subset of C11 and CUDA C++.
$(BUILD)/obj/train_gpt.o: train_gpt.cu $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -x c -c -o $@ $<
define isa_rule
$(BUILD)/obj/%.$(1).o: %.c $(BUILD)/flags
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(ALL_CFLAGS) -DISA=$(1) $$(ISA_$(1)) -c -o $$@ $$<
endef
$(foreach isa,$(ISAS),$(eval $(call isa_rule,$(isa))))

include llmc/cuda/cuda.mk
include llmc/mpi/mpi.mk
include dev/emu/emu.mk

.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
