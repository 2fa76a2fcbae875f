// checkpoint.c: see checkpoint.h. The order of writes is the whole point: files, their sync, the manifest, its sync,
// the directory's sync, and only then the name under which anybody looks.
#include "llmc/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "llmc/json.h"

#define TEMPORARY_PREFIX ".tmp-"
#define DELETED_PREFIX ".del-"
#define STEP_PREFIX "step_"
#define MANIFEST_FORMAT "tokamak-manifest-1"
#define MAX_MANIFEST_BYTES ((size_t)1 << 26)
#define READ_CHUNK_BYTES ((size_t)1 << 20)
#define HASH_CHARS (2 * sizeof(XXH128_canonical_t))

// ---- names and directories ----

static bool starts_with(const char *text, const char *start) { return strncmp(text, start, strlen(start)) == 0; }

typedef struct {
    char **name;
    int count;
} NameList;

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// Everything in dir but . and .., sorted, so that errors and manifests do not depend on the file system's order.
static bool list_dir(NameList *out, const char *dir, Error *err) {
    *out = (NameList){0};
    DIR *stream = opendir(dir);
    if (stream == NULL) return error_set(err, "%s: cannot open directory: %s", dir, strerror(errno));
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        out->name = xrealloc(out->name, (size_t)(out->count + 1) * sizeof *out->name);
        out->name[out->count++] = xstrdup(entry->d_name);
    }
    closedir(stream);
    if (out->count > 0) qsort(out->name, (size_t)out->count, sizeof *out->name, compare_names);
    return true;
}
static void free_names(NameList *list) {
    for (int i = 0; i < list->count; ++i) free(list->name[i]);
    free(list->name);
}

// The parent of a path and its last part; trailing slashes do not count. Caller frees both.
static void split_path(char **parent, char **name, const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') --length;
    size_t start = length;
    while (start > 0 && path[start - 1] != '/') --start;
    *name = xasprintf("%.*s", (int)(length - start), path + start);
    *parent = start == 0 ? xstrdup(".") : xasprintf("%.*s", (int)start, path);
}

int64_t checkpoint_step(const char *dir) {
    char *parent, *name;
    split_path(&parent, &name, dir);
    int64_t step = -1;
    const char *digits = name + strlen(STEP_PREFIX);
    if (!starts_with(name, STEP_PREFIX) || strlen(digits) < 8 || digits[0] == '-' || !parse_i64(digits, &step))
        step = -1;
    free(parent);
    free(name);
    return step;
}

// ---- hashing ----

// Size and hash (as `xxhsum -H2` prints it) of what was written, read back: not of what we meant to write.
static bool hash_file(char out[HASH_CHARS + 1], int64_t *size, const char *path, Error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    XXH3_state_t *state = XXH3_createState();
    CHECK(state != NULL && XXH3_128bits_reset(state) == XXH_OK, "hashing %s", path);
    unsigned char *chunk = xmalloc(READ_CHUNK_BYTES);
    ssize_t got;
    *size = 0;
    while ((got = read(fd, chunk, READ_CHUNK_BYTES)) != 0) {
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) break;
        XXH3_128bits_update(state, chunk, (size_t)got);
        *size += got;
    }
    int reason = errno;
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    for (size_t i = 0; i < sizeof canonical; ++i) snprintf(out + 2 * i, 3, "%02x", canonical.digest[i]);
    free(chunk);
    XXH3_freeState(state);
    close(fd);
    return got == 0 ? true : error_set(err, "%s: cannot read: %s", path, strerror(reason));
}

static bool sync_file(const char *path, Error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    bool ok = fsync(fd) == 0;
    int reason = errno;
    close(fd);
    return ok ? true : error_set(err, "%s: cannot sync: %s", path, strerror(reason));
}

// ---- writing ----

static void release(CheckpointWriter *writer) {
    free(writer->dir);
    free(writer->final_dir);
    *writer = (CheckpointWriter){NULL, NULL};
}

static bool remove_leftovers(const char *run_dir, Error *err) {
    NameList names;
    if (!list_dir(&names, run_dir, err)) return false;
    bool ok = true;
    for (int i = 0; i < names.count && ok; ++i) {
        if (!starts_with(names.name[i], TEMPORARY_PREFIX STEP_PREFIX) &&
            !starts_with(names.name[i], DELETED_PREFIX STEP_PREFIX))
            continue;
        char *path = path_join(run_dir, names.name[i]);
        ok = remove_tree(path, err);
        free(path);
    }
    free_names(&names);
    return ok;
}

bool checkpoint_begin_at(CheckpointWriter *writer, const char *final_dir, Error *err) {
    char *parent, *name;
    split_path(&parent, &name, final_dir);
    char *temporary_name = xasprintf(TEMPORARY_PREFIX "%s", name);
    *writer = (CheckpointWriter){path_join(parent, temporary_name), path_join(parent, name)};
    free(temporary_name);
    free(parent);
    free(name);
    bool ok = remove_tree(writer->dir, err);
    if (ok && mkdir(writer->dir, 0777) != 0)
        ok = error_set(err, "%s: cannot create directory: %s", writer->dir, strerror(errno));
    if (!ok) release(writer);
    return ok;
}

bool checkpoint_begin(CheckpointWriter *writer, const char *run_dir, int64_t step, Error *err) {
    CHECK(step >= 0, "step=%" PRId64, step);
    if (!make_dirs(run_dir, err) || !remove_leftovers(run_dir, err)) return false;
    char *name = xasprintf(STEP_PREFIX "%08" PRId64, step), *path = path_join(run_dir, name);
    bool ok = checkpoint_begin_at(writer, path, err);
    free(path);
    free(name);
    return ok;
}

bool checkpoint_write_text(CheckpointWriter *writer, const char *name, const char *text, Error *err) {
    char *path = path_join(writer->dir, name);
    bool ok = file_write_atomic(path, text, strlen(text), err);
    free(path);
    return ok;
}

static bool add_to_manifest(cJSON *files, const char *dir, const char *name, Error *err) {
    char *path = path_join(dir, name), hash[HASH_CHARS + 1];
    int64_t size;
    bool ok = file_exists(path) || error_set(err, "%s: a checkpoint holds plain files only", path);
    ok = ok && sync_file(path, err) && hash_file(hash, &size, path, err);
    if (ok) {
        cJSON *entry = cJSON_AddObjectToObject(files, name);
        cJSON_AddNumberToObject(entry, "bytes", (double)size);
        cJSON_AddStringToObject(entry, "xxh3_128", hash);
    }
    free(path);
    return ok;
}

static bool write_manifest(CheckpointWriter *writer, Error *err) {
    NameList names;
    if (!list_dir(&names, writer->dir, err)) return false;
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "format", MANIFEST_FORMAT);
    cJSON *files = cJSON_AddObjectToObject(root, "files");
    bool ok = true;
    for (int i = 0; i < names.count && ok; ++i)
        if (strcmp(names.name[i], CHECKPOINT_MANIFEST) != 0)
            ok = add_to_manifest(files, writer->dir, names.name[i], err);
    if (ok) {
        char *text = cJSON_Print(root);
        CHECK(text != NULL, "manifest of %d files", names.count);
        ok = checkpoint_write_text(writer, CHECKPOINT_MANIFEST, text, err);  // synced, and its name with it
        cJSON_free(text);
    }
    cJSON_Delete(root);
    free_names(&names);
    return ok;
}

// Gives `from` the name `to`. What had that name is exchanged for it; where the file system cannot exchange, it is
// renamed away first, so that at no moment a half of it has the name. If the old one cannot be removed, the next
// begin does.
static bool put_in_place(const char *from, const char *to, Error *err) {
    if (dir_exists(to) && renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0) {
        remove_tree(from, NULL);
        return true;
    }
    char *parent, *name;
    split_path(&parent, &name, to);
    char *away = xasprintf("%s/" DELETED_PREFIX "%s", parent, name);
    bool moved = dir_exists(to) && remove_tree(away, NULL) && rename(to, away) == 0;
    bool ok = rename(from, to) == 0;
    int reason = errno;
    if (!ok && moved) moved = rename(away, to) != 0;
    if (moved) remove_tree(away, NULL);
    free(away);
    free(parent);
    free(name);
    return ok ? true : error_set(err, "%s: cannot rename into place: %s", to, strerror(reason));
}

bool checkpoint_commit(CheckpointWriter *writer, Error *err) {
    char *parent, *name;
    split_path(&parent, &name, writer->final_dir);
    bool ok = write_manifest(writer, err) && fsync_dir(writer->dir, err) &&
              put_in_place(writer->dir, writer->final_dir, err);
    if (ok) {
        release(writer);
        ok = fsync_dir(parent, err);
    } else checkpoint_abort(writer);
    free(parent);
    free(name);
    return ok;
}

void checkpoint_abort(CheckpointWriter *writer) {
    remove_tree(writer->dir, NULL);  // what cannot be removed now is removed by the next begin
    release(writer);
}

// ---- verifying ----

static bool verify_file(const char *dir, const cJSON *entry, bool deep, Error *err) {
    const char *name = entry->string;
    int64_t expected, found;
    const cJSON *hash = json_find(entry, "xxh3_128");
    if (name[0] == '\0' || strchr(name, '/') != NULL || !json_as_i64(json_find(entry, "bytes"), &expected) ||
        !cJSON_IsString(hash) || strlen(hash->valuestring) != HASH_CHARS)
        return error_set(err, "%s/%s: entry '%s' is malformed", dir, CHECKPOINT_MANIFEST, name);
    char *path = path_join(dir, name), actual[HASH_CHARS + 1];
    struct stat info;
    bool ok = true;
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) ok = error_set(err, "%s: missing", path);
    else if (info.st_size != expected)
        ok = error_set(err, "%s: expected %" PRId64 " bytes, found %lld", path, expected, (long long)info.st_size);
    else if (deep) {
        ok = hash_file(actual, &found, path, err);
        if (ok && strcmp(actual, hash->valuestring) != 0)
            ok = error_set(err, "%s: changed since it was written: expected XXH3-128 %s, found %s", path,
                           hash->valuestring, actual);
    }
    free(path);
    return ok;
}

bool checkpoint_verify(const char *dir, bool deep, Error *err) {
    if (!dir_exists(dir)) return error_set(err, "%s: no such directory", dir);
    char *path = path_join(dir, CHECKPOINT_MANIFEST);
    cJSON *root = NULL;
    bool ok = file_exists(path) || error_set(err, "%s: missing: the checkpoint is incomplete", path);
    if (ok) {
        root = json_parse_file(path, MAX_MANIFEST_BYTES, err);
        ok = root != NULL;
    }
    const cJSON *files = json_find(root, "files"), *format = json_find(root, "format");
    if (ok &&
        (!cJSON_IsObject(files) || !cJSON_IsString(format) || strcmp(format->valuestring, MANIFEST_FORMAT) != 0))
        ok = error_set(err, "%s: expected an object with format '%s' and files", path, MANIFEST_FORMAT);
    if (ok)
        for (const cJSON *entry = files->child; entry != NULL && ok; entry = entry->next)
            ok = verify_file(dir, entry, deep, err);
    cJSON_Delete(root);
    free(path);
    return ok;
}

// ---- the checkpoints of a run ----

static int compare_steps_down(const void *a, const void *b) {
    int64_t x = checkpoint_step(*(char *const *)a), y = checkpoint_step(*(char *const *)b);
    return (x < y) - (x > y);
}

// Paths of the step directories, newest first. A run directory that does not exist has none.
static bool list_steps(NameList *out, const char *run_dir, Error *err) {
    *out = (NameList){0};
    if (!dir_exists(run_dir)) return true;
    NameList all;
    if (!list_dir(&all, run_dir, err)) return false;
    out->name = xcalloc((size_t)all.count, sizeof *out->name);
    for (int i = 0; i < all.count; ++i) {
        char *path = path_join(run_dir, all.name[i]);
        if (checkpoint_step(path) >= 0 && dir_exists(path)) out->name[out->count++] = path;
        else free(path);
    }
    free_names(&all);
    if (out->count > 0) qsort(out->name, (size_t)out->count, sizeof *out->name, compare_steps_down);
    return true;
}

char *checkpoint_newest(const char *run_dir, char **skipped) {
    *skipped = NULL;
    NameList steps;
    Error err = {""};
    if (!list_steps(&steps, run_dir, &err)) {
        *skipped = xstrdup(err.message);
        return NULL;
    }
    char *newest = NULL;
    for (int i = 0; i < steps.count && newest == NULL; ++i) {
        if (checkpoint_verify(steps.name[i], true, &err)) {
            newest = xstrdup(steps.name[i]);
            continue;
        }
        char *longer = *skipped == NULL ? xstrdup(err.message) : xasprintf("%s; %s", *skipped, err.message);
        free(*skipped);
        *skipped = longer;
    }
    free_names(&steps);
    return newest;
}

static bool delete_checkpoint(const char *dir, Error *err) {
    char *parent, *name;
    split_path(&parent, &name, dir);
    char *away = xasprintf("%s/" DELETED_PREFIX "%s", parent, name);
    bool ok = remove_tree(away, err);
    if (ok && rename(dir, away) != 0) ok = error_set(err, "%s: cannot rename to %s: %s", dir, away, strerror(errno));
    ok = ok && fsync_dir(parent, err) && remove_tree(away, err);
    free(away);
    free(parent);
    free(name);
    return ok;
}

bool checkpoint_prune(const char *run_dir, int64_t keep_last, Error *err) {
    CHECK(keep_last >= 0, "keep_last=%" PRId64, keep_last);
    if (keep_last == 0) return true;
    NameList steps;
    if (!list_steps(&steps, run_dir, err)) return false;
    int64_t kept = 0;
    bool ok = true, deep_found = false;
    for (int i = 0; i < steps.count && ok; ++i) {
        // Hashing them all would read the disk at each save: only until one is known whole are the hashes checked.
        bool whole = kept < keep_last && checkpoint_verify(steps.name[i], !deep_found, NULL);
        if (whole) {
            ++kept;
            deep_found = true;
        } else if (kept == keep_last) ok = delete_checkpoint(steps.name[i], err);
    }
    free_names(&steps);
    return ok;
}
