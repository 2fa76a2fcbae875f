// dir_list.c: see dir_list.h.
#include "llmc/base/dir_list.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool dir_list(NameList *out, const char *dir, Error *err) {
    *out = (NameList){0};
    DIR *stream = opendir(dir);
    if (stream == NULL) return error_set(err, "%s: cannot open directory: %s", dir, strerror(errno));
    errno = 0;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL; errno = 0) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        out->name = xrealloc(out->name, (size_t)(out->count + 1) * sizeof *out->name);
        out->name[out->count++] = xstrdup(entry->d_name);
    }
    int reason = errno;
    closedir(stream);
    if (reason != 0) {
        name_list_free(out);
        return error_set(err, "%s: cannot read directory: %s", dir, strerror(reason));
    }
    if (out->count > 0) qsort(out->name, (size_t)out->count, sizeof *out->name, compare_names);
    return true;
}

void name_list_free(NameList *list) {
    for (int i = 0; i < list->count; ++i) free(list->name[i]);
    free(list->name);
    *list = (NameList){0};
}
