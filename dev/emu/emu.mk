# emu.mk: the emulated GPU, included by the Makefile: `make emu` builds $(BUILD)/libllmc_cudaemu.so, the plug-in of
# llmc/cuda compiled by a host compiler over dev/emu, and, if clang++ is found, $(BUILD)/emu_race/libllmc_cudaemu.so,
# whose kernels report races. Nothing is built without the CUDA headers.

CUDA_INCLUDE ?= $(patsubst %/cuda_runtime_api.h,%,$(firstword $(wildcard /usr/local/cuda/include/cuda_runtime_api.h)))
EMU_CUDA     := $(wildcard llmc/cuda/*.cu)
EMU_SRC      := $(filter-out dev/emu/emu_race.cpp dev/emu/emu_nccl.cpp,$(wildcard dev/emu/*.cpp))
EMU_OBJ      := $(patsubst %,$(BUILD)/emu/%.o,$(basename $(EMU_CUDA) $(EMU_SRC)))
EMU_RACE_OBJ := $(patsubst %,$(BUILD)/emu_race/%.o,$(basename $(EMU_CUDA) $(filter-out dev/emu/emu_nccl.cpp,$(wildcard dev/emu/*.cpp))))

# Rounding must not depend on the compiler or its optimization level: no contraction to fused multiply-adds.
EMU_FLAGS := -std=c++17 -fPIC -g -ffp-contract=off -Wall -Wextra -Wshadow -Wno-unknown-pragmas -Werror -DTOKAMAK_EMU -fopenmp \
             -I. -Idev/emu $(addprefix -isystem ,$(CUDA_INCLUDE)) -MMD -MP
EMU_OPT   ?= -O2
EMU_CXX   ?= g++
EMU_RACE_CXX ?= clang++
# The race build's kernels call __tsan_* for every access; emu_race.cpp defines them, libtsan is not linked. clang copies
# structs by memcpy: emu_race.cpp replaces it. #pragma unroll is ignored, which halves the time.
EMU_RACE_FLAGS   := -DTOKAMAK_EMU_RACE
EMU_RACE_KERNELS := -fsanitize=thread -mllvm -tsan-instrument-func-entry-exit=0 -mllvm -tsan-handle-cxx-exceptions=0 \
                    -mllvm -pragma-unroll-threshold=1 -Wno-pass-failed
# Only the plug-in's entry point is visible, and every function that it calls must be defined: one that the shims lack
# is a link error.
EMU_LINK := -shared -Wl,-z,defs -Wl,--version-script=dev/emu/emu_exports.map -Wl,-soname,libllmc_cudaemu.so

EMU_RACE_BUILT := $(if $(SANITIZE),,$(if $(shell command -v $(EMU_RACE_CXX)),$(BUILD)/emu_race/libllmc_cudaemu.so))
EMU_BUILT := $(if $(CUDA_INCLUDE),$(if $(EMU_CUDA),$(BUILD)/libllmc_cudaemu.so $(EMU_RACE_BUILT)))
# NCCL over MPI, where both are found.
ifneq ($(and $(MPI_PLUGIN),$(wildcard $(addsuffix /nccl.h,$(CUDA_INCLUDE)))),)
EMU_BUILT += $(BUILD)/libnccl_emu.so $(if $(EMU_RACE_BUILT),$(BUILD)/emu_race/libnccl_emu.so)
endif
.PHONY: emu
emu: $(EMU_BUILT) ## build the emulated GPU (the CUDA plug-in on the CPU)
	@$(if $(CUDA_INCLUDE),:,echo 'the CUDA headers are absent: the emulated GPU is not built')

$(BUILD)/libllmc_cudaemu.so: $(EMU_OBJ) $(LIB) dev/emu/emu_exports.map
	$(Q)$(EMU_CXX) $(SANITIZE) $(EMU_LINK) -o $@ $(EMU_OBJ) $(LIB) $(LDLIBS)
$(BUILD)/emu_race/libllmc_cudaemu.so: $(EMU_RACE_OBJ) $(LIB) dev/emu/emu_exports.map
	$(Q)$(EMU_CXX) $(EMU_LINK) -o $@ $(EMU_RACE_OBJ) $(LIB) $(LDLIBS)

# It calls the emulated runtime in the plug-in that opened it, which has the same soname.
EMU_MPI_CXX := $(if $(MPI_WRAPPER),OMPI_CC='$(EMU_CXX)' MPICH_CC='$(EMU_CXX)' I_MPI_CC='$(EMU_CXX)' $(MPI_WRAPPER),$(EMU_CXX))
$(BUILD)/emu/dev/emu/emu_nccl.o: dev/emu/emu_nccl.cpp $(BUILD)/emu/flags $(BUILD)/mpi.config
	@mkdir -p $(@D)
	$(Q)$(EMU_MPI_CXX) $(EMU_OPT) $(EMU_FLAGS) $(SANITIZE) $(MPI_CFLAGS) -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX -c -o $@ $<
$(BUILD)/libnccl_emu.so: $(BUILD)/emu/dev/emu/emu_nccl.o $(BUILD)/libllmc_cudaemu.so
	$(Q)$(EMU_MPI_CXX) $(SANITIZE) -shared -Wl,-z,defs -o $@ $< -L$(BUILD) -l:libllmc_cudaemu.so $(MPI_LIBS)
$(BUILD)/emu_race/libnccl_emu.so: $(BUILD)/libnccl_emu.so
	@mkdir -p $(@D)
	$(Q)ln -sf ../libnccl_emu.so $@
# The program that tests/ranks/test_comm_nccl.sh runs as several ranks.
tests: $(BUILD)/tests/comm_nccl_ranks
$(BUILD)/tests/comm_nccl_ranks: $(BUILD)/obj/tests/ranks/mpi/comm_nccl_ranks.o $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)

EMU_FLAGS_NOW := $(EMU_CXX) $(EMU_RACE_CXX) $(EMU_OPT) $(EMU_FLAGS) $(EMU_RACE_KERNELS) $(SANITIZE)
$(BUILD)/emu/flags: force
	@mkdir -p $(@D)
	@printf '%s\n' '$(EMU_FLAGS_NOW)' | cmp -s - $@ || printf '%s\n' '$(EMU_FLAGS_NOW)' > $@

$(BUILD)/emu/%.o: %.cu $(BUILD)/emu/flags
	@mkdir -p $(@D)
	$(Q)$(EMU_CXX) -x c++ $(EMU_OPT) $(EMU_FLAGS) $(SANITIZE) -c -o $@ $<
$(BUILD)/emu/%.o: %.cpp $(BUILD)/emu/flags
	@mkdir -p $(@D)
	$(Q)$(EMU_CXX) $(EMU_OPT) $(EMU_FLAGS) $(SANITIZE) -c -o $@ $<
$(BUILD)/emu_race/%.o: %.cu $(BUILD)/emu/flags
	@mkdir -p $(@D)
	$(Q)$(EMU_RACE_CXX) -x c++ $(EMU_OPT) $(EMU_FLAGS) $(EMU_RACE_FLAGS) $(EMU_RACE_KERNELS) -c -o $@ $<
	$(Q)objcopy $(foreach copy,memcpy memmove memset,--redefine-sym $(copy)=emu_race_$(copy)) $@
$(BUILD)/emu_race/%.o: %.cpp $(BUILD)/emu/flags
	@mkdir -p $(@D)
	$(Q)$(EMU_CXX) $(EMU_OPT) $(EMU_FLAGS) $(EMU_RACE_FLAGS) -c -o $@ $<

# The runtime's and cuBLASLt's own tests, linked without kernels; tests/gpu/test_emu_runtime.sh runs them.
EMU_HOST_OBJ := $(filter $(BUILD)/emu/dev/emu/emu_runtime%.o $(BUILD)/emu/dev/emu/emu_cublaslt%.o,$(EMU_OBJ))
EMU_TESTS    := $(patsubst tests/gpu/%.cpp,$(BUILD)/emu/%,$(wildcard tests/gpu/test_emu_*.cpp))
$(BUILD)/emu/test_emu_%: $(BUILD)/emu/tests/gpu/test_emu_%.o $(EMU_HOST_OBJ) $(LIB)
	$(Q)$(EMU_CXX) $(SANITIZE) -o $@ $^ $(TEST_LDLIBS) $(LDLIBS)
# The device half's tests, ordinary and race build; tests/gpu/test_emu_device.sh runs them.
EMU_PROGRAMS  := $(patsubst tests/gpu/emu/%.cu,%,$(wildcard tests/gpu/emu/*.cu))
EMU_CORE_OBJ  := $(filter $(BUILD)/emu/dev/emu/emu_exec.o $(BUILD)/emu/dev/emu/emu_fiber.o \
                 $(BUILD)/emu/dev/emu/emu_runtime%.o,$(EMU_OBJ))
EMU_RACE_CORE := $(patsubst $(BUILD)/emu/%,$(BUILD)/emu_race/%,$(EMU_CORE_OBJ)) $(BUILD)/emu_race/dev/emu/emu_race.o
EMU_TESTS     += $(EMU_PROGRAMS:%=$(BUILD)/emu/%) $(if $(EMU_RACE_BUILT),$(EMU_PROGRAMS:%=$(BUILD)/emu_race/%))
$(EMU_PROGRAMS:%=$(BUILD)/emu/%): $(BUILD)/emu/%: $(BUILD)/emu/tests/gpu/emu/%.o $(EMU_CORE_OBJ)
	$(Q)$(EMU_CXX) $(SANITIZE) -o $@ $^ $(TEST_LDLIBS) -ldl
$(EMU_PROGRAMS:%=$(BUILD)/emu_race/%): $(BUILD)/emu_race/%: $(BUILD)/emu_race/tests/gpu/emu/%.o $(EMU_RACE_CORE)
	$(Q)$(EMU_CXX) -o $@ $^ $(TEST_LDLIBS) -ldl
ifneq ($(CUDA_INCLUDE),)
tests: $(EMU_TESTS)
endif
