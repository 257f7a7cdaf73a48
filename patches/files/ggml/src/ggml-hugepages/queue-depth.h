#pragma once

#include "stopwatch.h"

// duration of a test of a number of threads
static const uint64_t GGML_HUGEPAGES_PROBE_US = 200*1000;

// Each thread is one request in flight. Only a trial shows how many a device needs: four keep one disk busy, sixteen are too few for an
// array of disks.
struct ggml_hugepages_queue_depth {
    uint64_t begin;              // of the current test, microseconds
    uint64_t bytes      = 0;     // read at its begin
    double   rate       = 0.0;   // before the last doubling of the threads
    bool     is_settled = false; // the last doubling gained nothing

    // Whether to double the threads, at most every GGML_HUGEPAGES_PROBE_US: yes while each doubling gains a fifth.
    bool wants_more(uint64_t direct, uint64_t cached) {
        const uint64_t now = ggml_hugepages_now_us();
        if (is_settled || now - begin < GGML_HUGEPAGES_PROBE_US || direct <= bytes) {
            return false;
        }
        const double before = rate;
        rate  = (double) (direct - bytes)/(now - begin);
        begin = now;
        bytes = direct;
        // copies wait for the CPU, not for a device
        is_settled = cached >= direct || rate <= 1.2*before;
        return !is_settled;
    }
};
