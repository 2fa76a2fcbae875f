# mpi.mk: builds the MPI plug-in, $(BUILD)/libllmc_mpi.so, if MPI is found; included by the Makefile.
#   MPI=0          do not build it
#   MPICC=mpicc    the compiler wrapper of the MPI to use
# On one machine, Open MPI is fastest when processes may read each other's memory (CMA), which it detects by itself;
# a container may need --cap-add=SYS_PTRACE for it.

MPI ?= 1
export MPICC
$(BUILD)/mpi.config: scripts/find_mpi.sh force
	@mkdir -p $(@D)
	@scripts/find_mpi.sh --make > $@.new || { rm -f $@ $@.new; exit 1; }
	@cmp -s $@.new $@ || cp $@.new $@; rm -f $@.new
ifeq ($(filter clean help config setup,$(MAKECMDGOALS)),)
include $(BUILD)/mpi.config
endif

MPI_SRC    := $(wildcard llmc/mpi/*.c)
MPI_OBJ    := $(patsubst llmc/mpi/%.c,$(BUILD)/mpi/%.o,$(MPI_SRC))
MPI_PLUGIN := $(if $(filter 0,$(MPI)),,$(if $(MPI_WRAPPER)$(MPI_LIBS),$(BUILD)/libllmc_mpi.so))
# The wrapper adds its flags to those of $(CC).
MPI_CC     := $(if $(MPI_WRAPPER),OMPI_CC='$(CC)' MPICH_CC='$(CC)' I_MPI_CC='$(CC)' $(MPI_WRAPPER),$(CC))

.PHONY: mpi mpi-if-found
mpi-if-found: $(MPI_PLUGIN)
mpi: $(MPI_PLUGIN) ## build only the MPI plug-in (part of `make` if mpicc is found)
	@$(if $(MPI_PLUGIN),:,scripts/find_mpi.sh; echo 'no MPI plug-in is built here'; exit 1)

$(BUILD)/mpi/%.o: llmc/mpi/%.c $(BUILD)/flags $(BUILD)/mpi.config
	@mkdir -p $(@D)
	$(Q)$(MPI_CC) $(ALL_CFLAGS) $(MPI_CFLAGS) -c -o $@ $<
# As with the CUDA plug-in, the plug-in's copy of the library's functions is hidden from the program.
$(BUILD)/libllmc_mpi.so: $(MPI_OBJ) $(LIB)
	$(Q)$(MPI_CC) $(ALL_CFLAGS) -shared -o $@ $(MPI_OBJ) $(LIB) -Wl,--exclude-libs,ALL $(MPI_LIBS) $(LDLIBS)

# The program that tests/ranks/test_comm_mpi.sh runs with several ranks. It finds the plug-in as train_gpt does.
tests: $(BUILD)/tests/comm_ranks
$(BUILD)/tests/comm_ranks: $(BUILD)/obj/tests/ranks/mpi/comm_ranks.o $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)
