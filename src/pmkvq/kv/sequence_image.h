// One sequence taken out of a store, as plain data: to be kept in a file, and put into a store of
// the same settings later. No ownership of pages, no pointers into a store.
//
// The bytes of pages have the layout of the CPU's store (PageLayout::kPlanes).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/kv/kv_types.h"
#include "pmkvq/kv/packed/policy/block_pages.h"

namespace pmkvq {

// A setting of a store on which the meaning of its pages, or their later widths, depends.
struct ImageSetting {
  std::string name;
  std::string value;
  bool operator==(const ImageSetting&) const = default;
};

// A halving that OldestFirst has decided on and not carried out yet.
struct ImageAheadStep {
  int64_t layer = 0;
  int64_t page = 0;
  int64_t side = 0;  // 0: keys, 1: values.
  int64_t bits = 0;
  int64_t tokens_before = 0;  // How many tokens before the one that opens the next page.
  bool operator==(const ImageAheadStep&) const = default;
};

struct SequenceImage {
  struct Block {  // Without sink, pages and bytes where the model's block has no cache.
    std::vector<PageWidths> pages;       // Oldest first; the last one is the open page.
    int64_t num_freed = 0;               // The first pages, outside of a sliding window: no bytes.
    std::vector<PageWidths> next_pages;  // What OldestFirst decided for the next page; or empty.
    // Of keys and values, or c and k_r: the sink, then page after page: codes or floats, then
    // metadata. Floats are [heads of the stream, tokens, width], those behind the last token 0.
    std::array<std::vector<std::byte>, 2> bytes;
    bool operator==(const Block&) const = default;
  };
  std::vector<ImageSetting> settings;
  int64_t num_tokens = 0;
  int64_t peak_bytes = 0;
  int64_t narrowed_bytes = 0;
  bool next_is_planned = false;
  int64_t next_opened_at = 0;  // Tokens that are stored when the planned page is opened.
  std::vector<ImageAheadStep> next_steps;
  std::vector<Block> blocks;
  bool operator==(const SequenceImage&) const = default;
};

}  // namespace pmkvq
