// prep.h: the commands of prep. Each parses its own options and returns an exit code: 0, 1 (failed) or 2 (wrong
// usage), with the message in err, which main prints. Must not know models, training or devices.
#ifndef DATA_PREP_H
#define DATA_PREP_H

#include "llmc/base/option_table.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

int prep_train_tokenizer(int argc, char **argv, Error *err);
int prep_tokenize(int argc, char **argv, Error *err);
int prep_inspect(int argc, char **argv, Error *err);

// Option rows for reading text, for a struct with docs, field and threads.
#define PREP_TEXT_ROWS(settings)                                                                                 \
    {"docs", OPTION_TO((settings).docs), OPTION_WORD, .words = DOC_WORDS,                                        \
     .help = "what a document is; auto: jsonl for .jsonl, else file"},                                           \
        {"field", OPTION_TO((settings).field), OPTION_TEXT, 1, .help = "key of the text in .jsonl lines"}, {     \
        "threads", OPTION_TO((settings).threads), OPTION_WHOLE, 0, 1024,                                         \
            .help = "worker threads; 0: one per core"                                                            \
    }

#endif
