#!/usr/bin/env python3
"""Writes llmc/unicode_tables.c: the Unicode letters, numbers and white space that split patterns need.

Run by hand, only when the Unicode version is to change:
    pip install unicodedata2==16.0.0 && python3 dev/reference/make_unicode_tables.py > llmc/unicode_tables.c
Version 16 is what tiktoken 0.14 and Hugging Face tokenizers 0.23 use (check_tokenizer.py compares every code point).
"""
import unicodedata2 as unicodedata

PAGE = 256
OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3
WHITE_SPACE = {*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F,
               0x3000}


def class_of(code):
    if code in WHITE_SPACE:
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata.category(chr(code))[0], OTHER)


def rows(values, per_line, width):
    for i in range(0, len(values), per_line):
        yield "    " + ", ".join(f"{v:{width}d}" for v in values[i : i + per_line]) + ","


def main():
    pages, index = [], []
    for first in range(0, 0x110000, PAGE):
        packed = tuple(
            sum(class_of(first + i + j) << (2 * j) for j in range(4)) for i in range(0, PAGE, 4)
        )
        if packed not in pages:
            pages.append(packed)
        index.append(pages.index(packed))
    assert len(pages) <= 256
    print("// unicode_tables.c: written by dev/reference/make_unicode_tables.py; do not edit.")
    version = unicodedata.unidata_version
    print(f"// Unicode {version}: 2 bits a code point (UnicodeClass), in pages of {PAGE} code points.")
    print('#include "llmc/unicode.h"\n')
    print(f"const uint8_t UNICODE_PAGE_OF[{len(index)}] = {{")
    print("\n".join(rows(index, 22, 3)))
    print(f"}};\n\nconst uint8_t UNICODE_PAGES[][{PAGE // 4}] = {{")
    for page in pages:
        print("    {" + "\n     ".join(line.strip() for line in rows(page, 22, 3)).rstrip(",") + "},")
    print("};")


main()
