#include "shim.h"

#include <cstdio>
#include <cstdlib>
#include <exception>

// tools/server/server.cpp
int llama_server(int argc, char ** argv);

int lh_server_main(int argc, char ** argv) noexcept {
    try {
        return llama_server(argc, argv);
    } catch (const std::exception & e) {
        fprintf(stderr, "llama-server: %s\n", e.what());
    } catch (...) {
        fprintf(stderr, "llama-server: unknown error\n");
    }
    return EXIT_FAILURE;
}
