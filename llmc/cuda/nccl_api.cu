// nccl_api.cu: opens NCCL at run time: the plug-in starts without it, and a process with one rank never loads its
// 200 MB. Host code only.
#include "llmc/base/plugin.h"
#include "llmc/cuda/comm_nccl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if NCCL_BUILT

#if defined(TOKAMAK_EMU)
#define NCCL_LIBRARY "libnccl_emu.so"  // dev/emu/emu_nccl.cpp
#else
#define NCCL_LIBRARY "libnccl.so.2"
#endif

void nccl_version_text(int version, char *text, size_t bytes) {
    snprintf(text, bytes, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

// Opens a library beside the plug-in, else by the loader's rules, which include the directories that the plug-in was
// linked with. NULL: err lists what was tried.
static void *open_library(Error *err) {
    Dl_info here;
    char beside[4200] = "";
    if (dladdr((const void *)&nccl_version_text, &here) != 0 && strrchr(here.dli_fname, '/') != NULL) {
        int dir = (int)(strrchr(here.dli_fname, '/') - here.dli_fname);
        snprintf(beside, sizeof beside, "%.*s/%s", dir, here.dli_fname, NCCL_LIBRARY);
    }
    bool found = beside[0] != '\0' && file_exists(beside);
    void *library = dlopen(found ? beside : NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL)
        error_set(err,
                  "NCCL, which several GPUs need, cannot be opened (tried %s, then %s on the loader's path: %s); "
                  "install it, or put its directory into LD_LIBRARY_PATH",
                  beside, NCCL_LIBRARY, dlerror());
    return library;
}

bool nccl_api_open(NcclApi *api, Error *err) {
    memset(api, 0, sizeof *api);
    api->library = open_library(err);
    if (api->library == NULL) return false;
    const LibrarySymbol wanted[] = {
        {"ncclGetVersion", &api->get_version},
        {"ncclGetUniqueId", &api->get_unique_id},
        {"ncclCommInitRank", &api->init_rank},
        {"ncclCommDestroy", &api->destroy},
        {"ncclCommAbort", &api->abort},
        {"ncclCommGetAsyncError", &api->async_error},
        {"ncclGetErrorString", &api->error_string},
        {"ncclGetLastError", &api->last_error},
        {"ncclGroupStart", &api->group_start},
        {"ncclGroupEnd", &api->group_end},
        {"ncclReduceScatter", &api->reduce_scatter},
        {"ncclReduce", &api->reduce},
        {"ncclAllGather", &api->all_gather},
        {"ncclBroadcast", &api->broadcast},
        {"ncclAllReduce", &api->all_reduce},
        {"ncclSend", &api->send},
        {"ncclRecv", &api->recv},
    };
    // The version first: an old library lacks functions.
    if (!library_symbols(api->library, NCCL_LIBRARY, wanted, 1, NULL) ||
        api->get_version(&api->version) != ncclSuccess)
        return error_set(err, "%s: cannot read the version of NCCL", NCCL_LIBRARY);
    if (api->version < NCCL_OLDEST) {
        char found[32], oldest[32];
        nccl_version_text(api->version, found, sizeof found);
        nccl_version_text(NCCL_OLDEST, oldest, sizeof oldest);
        return error_set(err, "NCCL %s is too old: %s or newer is needed", found, oldest);
    }
    return library_symbols(api->library, NCCL_LIBRARY, wanted, sizeof wanted / sizeof wanted[0], err);
}

#endif
