// row_format.c: see row_format.h.
#include "llmc/loader/row_format.h"

#include <stdio.h>
#include <string.h>

const int32_t *row_source_read(const RowSource *source, int64_t first, int64_t count, Error *err) {
    CHECK(first >= 0 && count >= 0 && count <= source->token_count - first && count <= source->buffer_tokens,
          "first=%lld count=%lld of %lld, room for %lld", (long long)first, (long long)count,
          (long long)source->token_count, (long long)source->buffer_tokens);
    return shard_set_read(source->buffer, source->set, first, count, source->vocab, err) ? source->buffer : NULL;
}

const RowFormat *row_format_find(const char *name, Error *err) {
    if (name[0] == '\0') return ROW_FORMATS[0];
    char names[256] = "";
    size_t used = 0;
    for (const RowFormat *const *format = ROW_FORMATS; *format != NULL; ++format) {
        const char *known = (*format)->name;
        if (strcmp(known, name) == 0) return *format;
        CHECK(used + strlen(known) + 2 < sizeof names, "too many formats to list: %s", names);
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used > 0 ? " " : "", known);
    }
    error_set(err, "format: expected one of: %s; found '%s'", names, name);
    return NULL;
}
