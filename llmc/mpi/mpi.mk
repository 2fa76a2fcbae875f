# mpi.mk: the MPI plug-in, $(BUILD)/libllmc_mpi.so, where MPI is found; included by the Makefile.
#   MPI=0          leave it out
#   MPICC=mpicc    the compiler wrapper of the MPI to use
# Open MPI between processes of one machine is fastest when it may read another's memory (CMA), which it finds out by
# itself; in a container that forbids it, --cap-add=SYS_PTRACE allows it.

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
# The wrapper adds its own flags to our compiler's.
MPI_CC     := $(if $(MPI_WRAPPER),OMPI_CC='$(CC)' MPICH_CC='$(CC)' I_MPI_CC='$(CC)' $(MPI_WRAPPER),$(CC))

.PHONY: mpi mpi-if-found
mpi-if-found: $(MPI_PLUGIN)
mpi: $(MPI_PLUGIN) ## build only the MPI plug-in (part of `make` where mpicc is found)
	@$(if $(MPI_PLUGIN),:,scripts/find_mpi.sh; echo 'no MPI plug-in is built here'; exit 1)

$(BUILD)/mpi/%.o: llmc/mpi/%.c $(BUILD)/flags $(BUILD)/mpi.config
	@mkdir -p $(@D)
	$(Q)$(MPI_CC) $(ALL_CFLAGS) $(MPI_CFLAGS) -c -o $@ $<
# As with the CUDA plug-in, the library's copy of our functions and the program's never meet.
$(BUILD)/libllmc_mpi.so: $(MPI_OBJ) $(LIB)
	$(Q)$(MPI_CC) $(ALL_CFLAGS) -shared -o $@ $(MPI_OBJ) $(LIB) -Wl,--exclude-libs,ALL $(MPI_LIBS) $(LDLIBS)

# The program that tests/ranks/test_comm_mpi.sh runs as several ranks. It finds the plug-in as train_gpt does.
tests: $(BUILD)/tests/comm_ranks
$(BUILD)/tests/comm_ranks: $(BUILD)/obj/tests/ranks/mpi/comm_ranks.o $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LDLIBS)
