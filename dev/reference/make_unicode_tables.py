#!/usr/bin/env python3
"""Writes the generated tables of llmc/tokenizer/unicode.h and llmc/tokenizer/unicode_nfc.h.

Run by hand, only to change the Unicode version:
    pip install unicodedata2==16.0.0
    python3 dev/reference/make_unicode_tables.py classes > llmc/tokenizer/unicode_tables.c
    python3 dev/reference/make_unicode_tables.py nfc > llmc/tokenizer/unicode_nfc_tables.c
Version 16 is what tiktoken 0.14 and Hugging Face tokenizers 0.23 use (check_tokenizer.py compares every code point).
"""
import sys

import unicodedata2 as unicodedata

PAGE = 256
OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3
WHITE_SPACE = {*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F,
               0x3000}
HANGUL = range(0xAC00, 0xAC00 + 11172)


def class_of(code):
    if code in WHITE_SPACE:
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata.category(chr(code))[0], OTHER)


def rows(values, per_line):
    for i in range(0, len(values), per_line):
        yield "    " + ", ".join(values[i : i + per_line]) + ","


def header(file, what):
    print(f"// {file}: written by dev/reference/make_unicode_tables.py; do not edit.")
    print(f"// Unicode {unicodedata.unidata_version}: {what}.")


def write_classes():
    pages, index = [], []
    for first in range(0, 0x110000, PAGE):
        packed = tuple(
            sum(class_of(first + i + j) << (2 * j) for j in range(4)) for i in range(0, PAGE, 4)
        )
        if packed not in pages:
            pages.append(packed)
        index.append(pages.index(packed))
    assert len(pages) <= 256
    header("unicode_tables.c", f"2 bits a code point (UnicodeClass), in pages of {PAGE} code points")
    print('#include "llmc/tokenizer/unicode.h"\n')
    print(f"const uint8_t UNICODE_PAGE_OF[{len(index)}] = {{")
    print("\n".join(rows([f"{i:3d}" for i in index], 22)))
    print(f"}};\n\nconst uint8_t UNICODE_PAGES[][{PAGE // 4}] = {{")
    for page in pages:
        lines = [line.strip() for line in rows([f"{v:3d}" for v in page], 22)]
        print("    {" + "\n     ".join(lines).rstrip(",") + "},")
    print("};")


def write_nfc():
    classes, decompositions, compositions = [], [], []
    for code in range(0x110000):
        combining = unicodedata.combining(chr(code))
        if combining:
            if classes and classes[-1][1] == code - 1 and classes[-1][2] == combining:
                classes[-1][1] = code
            else:
                classes.append([code, code, combining])
        mapping = unicodedata.decomposition(chr(code))
        if not mapping or mapping.startswith("<") or code in HANGUL:
            continue
        parts = [int(part, 16) for part in mapping.split()]
        assert len(parts) <= 2
        decompositions.append((code, *parts, *[0] * (2 - len(parts))))
        # Pairs that compose again in NFC; singletons and the composition exclusions do not.
        if len(parts) == 2 and unicodedata.normalize("NFC", chr(code)) == chr(code):
            compositions.append((*parts, code))
    header("unicode_nfc_tables.c", "canonical combining classes, decompositions and compositions, without Hangul")
    print('#include "llmc/tokenizer/unicode_nfc.h"\n')
    for kind, name, values, per_line in (
        ("CombiningRange", "COMBINING_RANGES", classes, 4),
        ("Decomposition", "DECOMPOSITIONS", decompositions, 3),
        ("Composition", "COMPOSITIONS", sorted(compositions), 3),
    ):
        print(f"const {kind} {name}[{len(values)}] = {{")
        print("\n".join(rows(["{" + ", ".join(f"0x{v:X}" for v in entry) + "}" for entry in values], per_line)))
        print(f"}};\nconst int {name[:-1]}_COUNT = {len(values)};")


{"classes": write_classes, "nfc": write_nfc}[sys.argv[1]]()
