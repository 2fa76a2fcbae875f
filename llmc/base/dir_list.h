// dir_list.h: the sorted names in a directory.
#ifndef LLMC_DIR_LIST_H
#define LLMC_DIR_LIST_H

#include "llmc/base/common.h"

typedef struct {
    char **name;
    int count;
} NameList;

// Everything in dir but . and .., sorted, so that errors and manifests do not depend on the file system's order. Free
// with name_list_free, which also accepts an empty list ({0}).
bool dir_list(NameList *out, const char *dir, Error *err);
void name_list_free(NameList *list);
#endif
