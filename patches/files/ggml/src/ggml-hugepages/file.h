#pragma once

// facts about an open file

#include <cstddef>
#include <string>

#include <sys/types.h>

// the path of an open file, empty if unknown
std::string ggml_hugepages_path_of(int fd);

// The absolute form of the name that the user gave to an open file: a link keeps its own name. Without such a name: the path of the file.
std::string ggml_hugepages_path_of(int fd, const char * name);

// page size of the hugetlbfs that holds a file, 0 on other file systems
size_t ggml_hugepages_page_of(int fd);

// false with errno, EIO if the file ends earlier
bool ggml_hugepages_read_all(int fd, void * data, size_t size, off_t at);
