# cuda.mk: the CUDA plug-in, $(BUILD)/libllmc_cuda.so, where nvcc and cuBLASLt are found; included by the Makefile.
#   CUDA=0                 do not build it (the emulator is still built)
#   CUDA_ARCHS="90a"       compile for fewer GPUs (default: 80 90a 100a, as far as the compiler knows them)

CUDA ?= 1
$(BUILD)/cuda.config: scripts/find_cuda.sh
	@mkdir -p $(@D)
	@scripts/find_cuda.sh --make > $@.new && { cmp -s $@.new $@ || cp $@.new $@; }; rm -f $@.new; touch $@
ifeq ($(filter clean help config setup,$(MAKECMDGOALS)),)
include $(BUILD)/cuda.config
endif
ifeq ($(CUDA),0)
NVCC :=
endif

CUDA_SRC    := $(wildcard llmc/cuda/*.cu)
CUDA_OBJ    := $(patsubst llmc/cuda/%.cu,$(BUILD)/cuda/%.o,$(CUDA_SRC))
CUDA_PLUGIN := $(if $(and $(NVCC),$(CUDA_SRC)),$(BUILD)/libllmc_cuda.so)
ifneq ($(NVCC),)
CUDA_KNOWN  := $(shell $(NVCC) --list-gpu-code 2>/dev/null)
CUDA_ARCHS  ?= 80 90a $(if $(filter sm_100,$(CUDA_KNOWN)),100a)
endif
# GPUs newer than the list run the PTX of sm_80.
CUDA_GENCODE := $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
                $(foreach a,$(filter 80,$(CUDA_ARCHS)),-gencode arch=compute_$(a),code=compute_$(a))
NVCC_FLAGS  := -std=c++17 -O3 -lineinfo -Xptxas -v -Werror all-warnings -ccbin $(if $(CXX),$(CXX),g++) \
               -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wshadow,-g -I. \
               $(addprefix -isystem ,$(CUDA_INCLUDE)) $(CUDA_GENCODE)

.PHONY: cuda cuda-if-found
cuda-if-found: $(CUDA_PLUGIN)
cuda: $(CUDA_PLUGIN) ## build only the CUDA plug-in (part of `make` where nvcc is found)
	@$(if $(CUDA_PLUGIN),:,scripts/find_cuda.sh; echo 'no CUDA plug-in is built here'; exit 1)

# The compiler's report of registers and spills is kept beside each object; its other messages are shown.
$(BUILD)/cuda/%.o: llmc/cuda/%.cu $(BUILD)/cuda/flags
	@mkdir -p $(@D)
	$(Q)if $(NVCC) $(NVCC_FLAGS) -MD -MF $(@:.o=.d) -c -o $@ $< > $(@:.o=.ptxas) 2>&1; \
	then grep -vE '^(ptxas|    |$$)' $(@:.o=.ptxas) >&2 || true; else cat $(@:.o=.ptxas) >&2; rm -f $@; exit 1; fi
$(BUILD)/cuda/flags: force
	@mkdir -p $(@D)
	@printf '%s\n' '$(NVCC) $(NVCC_FLAGS)' | cmp -s - $@ || printf '%s\n' '$(NVCC) $(NVCC_FLAGS)' > $@

# Only the parts of the library that the backend uses are linked in, with hidden names: the plug-in's copy and the
# program's are independent. The CUDA runtime is part of the plug-in; cuBLASLt is loaded from its directory at build
# time.
$(BUILD)/libllmc_cuda.so: $(CUDA_OBJ) $(LIB)
	$(Q)$(if $(CXX),$(CXX),g++) -shared -o $@ $(CUDA_OBJ) $(LIB) -Wl,--exclude-libs,ALL -Wl,-z,defs \
	    $(foreach d,$(CUDA_LIB_DIRS),-L$(d) -Wl,-rpath,$(d)) -lcudart_static $(CUDA_CUBLASLT) -lm -ldl -lrt -lpthread

-include $(wildcard $(BUILD)/cuda/*.d)
