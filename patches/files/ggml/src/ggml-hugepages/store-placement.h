#pragma once

// The placement of the pages of a resident image: the last line of its identity, unless its pages may be on any node.

#include "ggml-hugepages.h"

#include <string>

// "placement rows, nodes 0 1, threads 64"; empty if the pages may be on any node
std::string ggml_hugepages_placement_line(const ggml_hugepages_params & params);

// The identity of an image with this content and placement. A hash replaces the part of the content that does not fit in the manifest.
std::string ggml_hugepages_identity_with(const std::string & content, const std::string & placement);

// the placement in an identity, or empty
std::string ggml_hugepages_placement_of(const std::string & identity);
