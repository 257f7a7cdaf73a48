#pragma once

// the files of saved states in a store, states.cpp

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include <sys/types.h>

// a state in a store
struct ggml_hugepages_state_file {
    std::string name;
    uint64_t    id;
    size_t      size;
    bool        is_complete; // false: its process died while it saved, or saves it now
    int         fd;          // open during the call
};

// Calls back for each state of the context with this name that this user saved.
void ggml_hugepages_each_state(int dir_fd, const std::string & context_name, uid_t user, const std::function<void(const ggml_hugepages_state_file & state)> & callback);

// The line of a state's identity that follows the first one: its number, and the end of the context's name.
std::string ggml_hugepages_state_line(uint64_t id, const std::string & context_name);

// whether an identity is that of a state
bool ggml_hugepages_is_state(const char * identity);
