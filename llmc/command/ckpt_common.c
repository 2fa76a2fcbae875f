// ckpt_common.c: see ckpt_common.h.
#include "llmc/command/ckpt_common.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/base/file_writer.h"

#define COPY_BYTES ((size_t)1 << 20)
#define STATE_MAX_BYTES ((size_t)1 << 20)

bool ckpt_refuse_existing(const char *to, Error *err) {
    if (!file_exists(to) && !dir_exists(to)) return true;
    return error_set(err, "%s: already exists and is not overwritten; choose another path", to);
}

bool ckpt_read_model(ModelConfig *config, ParamTable *params, const char *path, Error *err) {
    if (!model_file_read_config(config, path, err) || !model_config_finish(config, err)) return false;
    params_build(params, config);
    return true;
}

bool ckpt_read_state(StateFile *out, const char *dir, Error *err) {
    char *path = path_join(dir, "state.json"), *json = NULL;
    bool ok = file_read_all(path, STATE_MAX_BYTES, &json, NULL, err) && state_file_parse(out, json, path, err);
    free(json);
    free(path);
    return ok;
}

bool ckpt_check_source(const char *dir, Error *err) {
    if (!dir_exists(dir)) return error_set(err, "%s: no such directory", dir);
    char *manifest = path_join(dir, CHECKPOINT_MANIFEST);
    bool bare = !file_exists(manifest) && !optimizer_files_exist(dir);
    free(manifest);
    return bare || checkpoint_verify(dir, true, err);
}

bool ckpt_open_optimizer(OptimizerFiles **out, StateKept *kept, const char *dir, const ParamTable *params,
                         Error *err) {
    OptimizerFiles *files;
    if (!optimizer_files_open(&files, dir, params, err)) return false;
    *kept = optimizer_files_kept(files);
    if (optimizer_files_check(files, kept, err)) {
        *out = files;
        return true;
    }
    optimizer_files_close(files);
    return false;
}

bool ckpt_copy_file(const char *from_dir, const char *to_dir, const char *name, Error *err) {
    char *from = path_join(from_dir, name), *to = path_join(to_dir, name);
    unsigned char *bytes = xmalloc(COPY_BYTES);
    FileWriter writer;
    ssize_t got = -1;
    int fd = open(from, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 || error_set(err, "%s: cannot open: %s", from, strerror(errno));
    ok = ok && file_writer_open(&writer, to, err);
    bool opened = ok;
    while (ok && (got = read(fd, bytes, COPY_BYTES)) > 0) ok = file_writer_append(&writer, bytes, (size_t)got, err);
    if (ok && got < 0) {
        ok = error_set(err, "%s: cannot read: %s", from, strerror(errno));
        file_writer_abort(&writer);
    }
    if (opened && ok) ok = file_writer_commit(&writer, err);
    if (fd >= 0) close(fd);
    free(bytes);
    free(from);
    free(to);
    return ok;
}
