# Tokamak: `make help` lists the targets. Everything is built under $(BUILD).

BUILD   ?= build
CC      ?= cc
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
              -fopenmp -I. $(SANITIZE) -MMD -MP
LDLIBS   := -lcjson -linih -lzstd -lz -lxxhash -lm -lpthread -ldl -fopenmp
TEST_LDLIBS := -lcmocka

# CPU kernels (*_kernels.c) are compiled once per instruction-set level; see llmc/cpu/isa.h.
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

LIB_SRC     := $(filter-out %_kernels.c,$(wildcard llmc/*.c llmc/cpu/*.c))
KERNEL_SRC  := $(wildcard llmc/cpu/*_kernels.c)
PREP_SRC    := $(wildcard data/*.c)
BENCH_SRC   := $(wildcard dev/bench/*.c)
TEST_SRC    := $(wildcard tests/test_*.c)
TEST_COMMON := $(filter-out $(TEST_SRC),$(wildcard tests/*.c))

obj = $(patsubst %,$(BUILD)/obj/%.o,$(basename $(1)))
LIB_OBJ     := $(call obj,$(LIB_SRC)) $(foreach isa,$(ISAS),$(patsubst %.c,$(BUILD)/obj/%.$(isa).o,$(KERNEL_SRC)))
LIB         := $(BUILD)/libllmc.a
TESTS       := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))

.PHONY: all help clean tests
all: $(BUILD)/train_gpt $(BUILD)/prep $(BUILD)/bench ## build train_gpt, prep and bench (the default)

help: ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(LIB): $(LIB_OBJ)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(BUILD)/train_gpt: $(call obj,train_gpt.cu) $(LIB)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/prep: $(call obj,$(PREP_SRC)) $(LIB)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/bench: $(call obj,$(BENCH_SRC)) $(LIB)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)

tests: $(TESTS) ## build the test programs
$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(call obj,$(TEST_COMMON)) $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(TEST_LDLIBS) $(LDLIBS)

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -c -o $@ $<
# train_gpt.cu is host code in the common subset of C11 and CUDA C++.
$(BUILD)/obj/train_gpt.o: train_gpt.cu
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -x c -c -o $@ $<
define isa_rule
$(BUILD)/obj/%.$(1).o: %.c
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(ALL_CFLAGS) -DISA=$(1) $$(ISA_$(1)) -c -o $$@ $$<
endef
$(foreach isa,$(ISAS),$(eval $(call isa_rule,$(isa))))

clean: ## remove everything that was built
	$(Q)rm -rf $(BUILD)

.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
