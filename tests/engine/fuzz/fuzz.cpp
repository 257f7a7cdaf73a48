#include "fuzz.h"

#include <filesystem>
#include <fstream>

static std::string g_dir;

static void remove_dir() {
    std::error_code ignored;
    std::filesystem::remove_all(g_dir, ignored);
}

const std::string & fuzz_dir() {
    if (g_dir.empty()) {
        // the program that starts this one may remove the folder, because this one cannot if it dies
        const char * parent = getenv("FUZZ_DIR");
        g_dir = std::string(parent ? parent : "/dev/shm") + "/llama-fuzz-XXXXXX";
        FUZZ_CHECK(mkdtemp(g_dir.data()));
        atexit(remove_dir);
    }
    return g_dir;
}

static int write_seeds(const std::string & dir) {
    const auto seeds = fuzz_seeds();
    for (size_t i = 0; i < seeds.size(); i++) {
        std::ofstream out(dir + "/seed-" + std::to_string(i), std::ios::binary);
        out << seeds[i];
        if (!out.flush()) {
            fprintf(stderr, "cannot write to %s\n", dir.c_str());
            return 1;
        }
    }
    // If the format changes, all seeds may fail at the first check, and the fuzzer would find nothing.
    for (const auto & seed : seeds) {
        if (fuzz_one({ (const uint8_t *) seed.data(), seed.size() })) {
            return 0;
        }
    }
    fprintf(stderr, "the parser accepts none of the %zu seeds\n", seeds.size());
    return 1;
}

extern "C" int LLVMFuzzerInitialize(int * argc, char *** argv) {
    if (*argc == 3 && strcmp((*argv)[1], "seeds") == 0) {
        exit(write_seeds((*argv)[2]));
    }
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_one({ data, size });
    return 0;
}
