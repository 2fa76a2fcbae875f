// tree_sum.h: the one order of sums over micro-batches and ranks, so that their bits do not depend on how the terms
// are distributed: a binary tree, ((0+1)+(2+3))+...: neighbours in pairs, then those sums in pairs; a sum without a
// partner moves up a level unchanged. Three equivalent forms are in use:
//   split     a node's left half is the largest power of two below its terms (tree_split): sums of blocks in a cache;
//   carries   terms arrive one by one and are added as a binary counter carries (tree_carries): at most 64 partial
//             sums;
//   strides   in place: term i + s is added to term i, for i a multiple of 2 s, with s = 1, 2, 4, ...
// Code that cannot use these functions (control_hub.c's rows, comm_sum.cu's kernel) is tested against tree_sum_*.
#ifndef LLMC_TREE_SUM_H
#define LLMC_TREE_SUM_H

#include <stdbool.h>
#include <stdint.h>

// Terms of the left half of a tree of `count` >= 2.
static inline int64_t tree_split(int64_t count) {
    int64_t left = 1;
    while (2 * left < count) left *= 2;
    return left;
}

// Term i completes sums of the levels 0 .. carries: a level-l sum has 2^l terms, and level l is occupied after term i
// if bit l of i + 1 is set. For each term: add level 0, 1, ... carries - 1 (each as the left operand), store at level
// `carries`. At the end add the occupied levels from the lowest up, the higher one as the left operand.
static inline int tree_carries(int64_t i) {
    int count = 0;
    for (; (i & 1) != 0; i >>= 1) ++count;
    return count;
}

#define TREE_SUM(name, type)                                            \
    static inline type name(const type *terms, int64_t count) {         \
        type level[64], sum = 0;                                        \
        for (int64_t i = 0; i < count; ++i) {                           \
            int carries = tree_carries(i);                              \
            type carry = terms[i];                                      \
            for (int l = 0; l < carries; ++l) carry = level[l] + carry; \
            level[carries] = carry;                                     \
        }                                                               \
        bool any = false;                                               \
        for (int l = 0; (count >> l) != 0; ++l) {                       \
            if (((count >> l) & 1) == 0) continue;                      \
            sum = any ? level[l] + sum : level[l];                      \
            any = true;                                                 \
        }                                                               \
        return sum;                                                     \
    }
// The sum of terms (count); 0 if count is 0.
TREE_SUM(tree_sum_f32, float)
TREE_SUM(tree_sum_f64, double)

#endif
