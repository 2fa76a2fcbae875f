// checkpoint.c: see checkpoint.h. The order of writes makes a checkpoint atomic: files, their fsync, the manifest, its
// fsync, the directory's fsync, and last the rename to the final name.
#include "llmc/checkpoint/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "llmc/base/format_version.h"

#define TEMPORARY_PREFIX ".tmp-"
#define DELETED_PREFIX ".del-"
#define STEP_PREFIX "step_"
#define MANIFEST_FORMAT "tokamak-manifest-1"
#define MAX_MANIFEST_BYTES ((size_t)1 << 26)
#define READ_CHUNK_BYTES ((size_t)1 << 20)
#define PART_PREFIX "MANIFEST.part-"
#define ATTACH_POLL_SECONDS 0.05
#define HASH_CHARS (2 * sizeof(XXH128_canonical_t))

// ---- names and directories ----

static bool starts_with(const char *text, const char *start) { return strncmp(text, start, strlen(start)) == 0; }

// The parent of a path and its last component; trailing slashes are ignored. Caller frees both.
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

// Size and hash (as `xxhsum -H2` prints it) of a file as read back from the disk, not of the buffers that were written.
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

// ---- reading manifests ----

// Reads a manifest and checks its format and its object "files". NULL: error.
static cJSON *read_manifest(const char *dir, const char *name, Error *err) {
    char *path = path_join(dir, name);
    cJSON *root = NULL;
    if (!file_exists(path)) error_set(err, "%s: missing: the checkpoint is incomplete", path);
    else root = json_parse_file(path, MAX_MANIFEST_BYTES, err);
    const cJSON *files = json_find(root, "files"), *format = json_find(root, "format");
    if (root != NULL && !format_version_read(FORMAT_MANIFEST, root, path, err)) {
        cJSON_Delete(root);
        root = NULL;
    }
    if (root != NULL &&
        (!cJSON_IsObject(files) || !cJSON_IsString(format) || strcmp(format->valuestring, MANIFEST_FORMAT) != 0)) {
        error_set(err, "%s: expected an object with format '%s' and files", path, MANIFEST_FORMAT);
        cJSON_Delete(root);
        root = NULL;
    }
    free(path);
    return root;
}

// manifest: the name of the file that has the entry.
static bool verify_file(const char *dir, const char *manifest, const cJSON *entry, bool deep, Error *err) {
    const char *name = entry->string;
    int64_t expected, found;
    const cJSON *hash = json_find(entry, "xxh3_128");
    if (name[0] == '\0' || strchr(name, '/') != NULL || !json_as_i64(json_find(entry, "bytes"), &expected) ||
        !cJSON_IsString(hash) || strlen(hash->valuestring) != HASH_CHARS)
        return error_set(err, "%s/%s: entry '%s' is malformed", dir, manifest, name);
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

// ---- writing ----

static void release(CheckpointWriter *writer) {
    free(writer->dir);
    free(writer->final_dir);
    *writer = (CheckpointWriter){0};
}

static bool remove_leftovers(const char *run_dir, Error *err) {
    NameList names;
    if (!dir_list(&names, run_dir, err)) return false;
    bool ok = true;
    for (int i = 0; i < names.count && ok; ++i) {
        if (!starts_with(names.name[i], TEMPORARY_PREFIX STEP_PREFIX) &&
            !starts_with(names.name[i], DELETED_PREFIX STEP_PREFIX))
            continue;
        char *path = path_join(run_dir, names.name[i]);
        ok = remove_tree(path, err);
        free(path);
    }
    name_list_free(&names);
    return ok;
}

static void name_directories(CheckpointWriter *writer, const char *final_dir) {
    char *parent, *name;
    split_path(&parent, &name, final_dir);
    char *temporary_name = xasprintf(TEMPORARY_PREFIX "%s", name);
    *writer = (CheckpointWriter){.dir = path_join(parent, temporary_name), .final_dir = path_join(parent, name)};
    free(temporary_name);
    free(parent);
    free(name);
}

static char *step_path(const char *run_dir, int64_t step) {
    CHECK(step >= 0, "step=%" PRId64, step);
    char *name = xasprintf(STEP_PREFIX "%08" PRId64, step), *path = path_join(run_dir, name);
    free(name);
    return path;
}

bool checkpoint_begin_at(CheckpointWriter *writer, const char *final_dir, Error *err) {
    name_directories(writer, final_dir);
    bool ok = remove_tree(writer->dir, err);
    if (ok && mkdir(writer->dir, 0777) != 0)
        ok = error_set(err, "%s: cannot create directory: %s", writer->dir, strerror(errno));
    if (!ok) release(writer);
    return ok;
}

bool checkpoint_begin(CheckpointWriter *writer, const char *run_dir, int64_t step, Error *err) {
    if (!make_dirs(run_dir, err) || !remove_leftovers(run_dir, err)) return false;
    char *path = step_path(run_dir, step);
    bool ok = checkpoint_begin_at(writer, path, err);
    free(path);
    return ok;
}

bool checkpoint_attach(CheckpointWriter *writer, const char *run_dir, int64_t step, double wait_seconds, Error *err) {
    char *path = step_path(run_dir, step);
    name_directories(writer, path);
    free(path);
    double until = now_seconds() + wait_seconds;
    bool there = dir_exists(writer->dir);
    while (!there && now_seconds() < until) {
        // A network file system caches missing entries for a while; listing the parent refreshes the cache.
        NameList names = {0};
        if (dir_list(&names, run_dir, NULL)) name_list_free(&names);
        usleep((useconds_t)(ATTACH_POLL_SECONDS * 1e6));
        there = dir_exists(writer->dir);
    }
    if (there) return true;
    error_set(err, "%s: rank 0 created this directory, but this host does not see it: out_dir must be on a file system "
                   "that all ranks share", writer->dir);
    release(writer);
    return false;
}

void checkpoint_detach(CheckpointWriter *writer) { release(writer); }

bool checkpoint_write_text(CheckpointWriter *writer, const char *name, const char *text, Error *err) {
    char *path = path_join(writer->dir, name);
    bool ok = file_write_atomic(path, text, strlen(text), err);
    free(path);
    return ok;
}

static bool add_to_manifest(cJSON *files, const char *dir, const char *name, Error *err) {
    char *path = path_join(dir, name), hash[HASH_CHARS + 1];
    int64_t size;
    bool ok = file_exists(path) || error_set(err, "%s: a checkpoint may contain plain files only", path);
    ok = ok && sync_file(path, err) && hash_file(hash, &size, path, err);
    if (ok) {
        cJSON *entry = cJSON_AddObjectToObject(files, name);
        cJSON_AddNumberToObject(entry, "bytes", (double)size);
        cJSON_AddStringToObject(entry, "xxh3_128", hash);
    }
    free(path);
    return ok;
}

static char *part_name(int part) { return xasprintf(PART_PREFIX "%05d.json", part + 1); }

// {"format": ..., "files": {}}; *files is owned by the root.
static cJSON *new_manifest(cJSON **files) {
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "format", MANIFEST_FORMAT);
    format_version_add(root, FORMAT_MANIFEST);
    *files = cJSON_AddObjectToObject(root, "files");
    return root;
}

static bool write_json(CheckpointWriter *writer, const char *name, const cJSON *root, Error *err) {
    char *text = cJSON_Print(root);
    CHECK(text != NULL, "%s", name);
    bool ok = checkpoint_write_text(writer, name, text, err);  // also syncs the directory entry
    cJSON_free(text);
    return ok;
}

bool checkpoint_write_part(CheckpointWriter *writer, int part, const char *const *names, int count, Error *err) {
    cJSON *files, *root = new_manifest(&files);
    bool ok = true;
    for (int i = 0; i < count && ok; ++i) ok = add_to_manifest(files, writer->dir, names[i], err);
    char *name = part_name(part);
    ok = ok && write_json(writer, name, root, err);
    free(name);
    cJSON_Delete(root);
    return ok;
}

// Moves the entries of a part to `files` and deletes the part. Its files must exist with the recorded sizes, which shows
// that this host sees the files that the other one wrote.
static bool merge_part(cJSON *files, const char *dir, int part, Error *err) {
    char *name = part_name(part);
    cJSON *root = read_manifest(dir, name, err);
    bool ok = root != NULL;
    cJSON *theirs = ok ? cJSON_GetObjectItemCaseSensitive(root, "files") : NULL;
    for (cJSON *entry = ok ? theirs->child : NULL; entry != NULL && ok;) {
        cJSON *next = entry->next;
        ok = verify_file(dir, name, entry, false, err);
        if (ok && json_find(files, entry->string) != NULL)
            ok = error_set(err, "%s/%s: '%s' is in another part too", dir, name, entry->string);
        if (ok) cJSON_AddItemToObject(files, entry->string, cJSON_DetachItemViaPointer(theirs, entry));
        entry = next;
    }
    cJSON_Delete(root);
    char *path = path_join(dir, name);
    if (ok && unlink(path) != 0) ok = error_set(err, "%s: cannot remove: %s", path, strerror(errno));
    free(path);
    free(name);
    return ok;
}

static bool write_manifest(CheckpointWriter *writer, Error *err) {
    cJSON *files, *root = new_manifest(&files);
    NameList names = {0};
    bool ok = true;
    for (int part = 0; part < writer->parts && ok; ++part) ok = merge_part(files, writer->dir, part, err);
    ok = ok && dir_list(&names, writer->dir, err);
    for (int i = 0; i < names.count && ok; ++i)
        if (strcmp(names.name[i], CHECKPOINT_MANIFEST) != 0 && json_find(files, names.name[i]) == NULL)
            ok = add_to_manifest(files, writer->dir, names.name[i], err);
    ok = ok && write_json(writer, CHECKPOINT_MANIFEST, root, err);
    cJSON_Delete(root);
    name_list_free(&names);
    return ok;
}

// Renames `from` to `to`. An existing `to` is exchanged with it; if the file system cannot exchange, it is first renamed
// to another name, so that `to` is never incomplete. If the old directory cannot be removed, the next begin removes it.
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
    remove_tree(writer->dir, NULL);  // on failure the next begin removes it
    release(writer);
}

// ---- verifying ----

bool checkpoint_verify(const char *dir, bool deep, Error *err) {
    if (!dir_exists(dir)) return error_set(err, "%s: no such directory", dir);
    cJSON *root = read_manifest(dir, CHECKPOINT_MANIFEST, err);
    bool ok = root != NULL;
    for (const cJSON *entry = ok ? json_find(root, "files")->child : NULL; entry != NULL && ok; entry = entry->next)
        ok = verify_file(dir, CHECKPOINT_MANIFEST, entry, deep, err);
    cJSON_Delete(root);
    return ok;
}

// ---- the checkpoints of a run ----

static int compare_steps_down(const void *a, const void *b) {
    int64_t x = checkpoint_step(*(char *const *)a), y = checkpoint_step(*(char *const *)b);
    return (x < y) - (x > y);
}

bool checkpoint_list(NameList *out, const char *run_dir, Error *err) {
    *out = (NameList){0};
    if (!dir_exists(run_dir)) return true;
    NameList all;
    if (!dir_list(&all, run_dir, err)) return false;
    out->name = xcalloc((size_t)all.count, sizeof *out->name);
    for (int i = 0; i < all.count; ++i) {
        char *path = path_join(run_dir, all.name[i]);
        if (checkpoint_step(path) >= 0 && dir_exists(path)) out->name[out->count++] = path;
        else free(path);
    }
    name_list_free(&all);
    if (out->count > 0) qsort(out->name, (size_t)out->count, sizeof *out->name, compare_steps_down);
    return true;
}

static bool has_newer_format(const char *dir) {
    char *path = path_join(dir, CHECKPOINT_MANIFEST);
    cJSON *root = json_parse_file(path, MAX_MANIFEST_BYTES, NULL);
    int64_t version;
    bool newer = json_as_i64(json_find(root, FORMAT_VERSION_KEY), &version) && version > format_version(FORMAT_MANIFEST);
    cJSON_Delete(root);
    free(path);
    return newer;
}

char *checkpoint_newest(const char *run_dir, char **skipped) {
    *skipped = NULL;
    NameList steps;
    Error err = {""};
    if (!checkpoint_list(&steps, run_dir, &err)) {
        *skipped = xstrdup(err.message);
        return NULL;
    }
    char *newest = NULL;
    for (int i = 0; i < steps.count && newest == NULL; ++i) {
        if (checkpoint_verify(steps.name[i], true, &err) || has_newer_format(steps.name[i])) {
            newest = xstrdup(steps.name[i]);
            continue;
        }
        char *longer = *skipped == NULL ? xstrdup(err.message) : xasprintf("%s; %s", *skipped, err.message);
        free(*skipped);
        *skipped = longer;
    }
    name_list_free(&steps);
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

bool checkpoint_prune(const char *run_dir, const CheckpointRetention *retention, Error *err) {
    int64_t keep_last = retention->keep_last, keep_every = retention->keep_every;
    CHECK(keep_last >= 0 && keep_every >= 0, "keep_last=%" PRId64 " keep_every=%" PRId64, keep_last, keep_every);
    if (keep_last == 0) return true;
    NameList steps;
    if (!checkpoint_list(&steps, run_dir, err)) return false;
    int64_t kept = 0;
    bool ok = true, deep_found = false;
    for (int i = 0; i < steps.count && ok; ++i) {
        int64_t step = checkpoint_step(steps.name[i]);
        bool known = step == retention->whole_step, stays = known || is_due(step, keep_every);
        // Hashes are checked only until one checkpoint is known to be whole: hashing all would read them at each save.
        bool whole = kept < keep_last && checkpoint_verify(steps.name[i], !deep_found && !known, NULL);
        if (whole) {
            ++kept;
            deep_found = true;
        } else if (kept == keep_last && !stays) ok = delete_checkpoint(steps.name[i], err);
    }
    name_list_free(&steps);
    return ok;
}
