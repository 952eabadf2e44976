#include "pool_options.h"

#include <fmt/format.h>

#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"

namespace pmkvq::cli {
namespace {

constexpr char kGroup[] = "KV pool";

CLI::Validator PrefixCacheSize() {
  const CLI::Validator size = KvBudgetSize();
  return CLI::Validator(
      [size](std::string& text) {
        if (text == "on" || text == "off") return std::string();
        const std::string error = size(text);
        return error.empty() ? "" : "found '" + text + "', expected on, off or a size: 512MiB";
      },
      "on|off|SIZE");
}

}  // namespace

void PoolCommandOptions::Register(CLI::App& command) {
  command_ = &command;
  command
      .add_option("--kv-mode", mode_,
                  "isolated: each request has its --kv-budget; pool: all requests share --kv-pool "
                  "(default: pool; isolated with --kv-budget or on a GPU)")
      ->transform(OneOf({"isolated", "pool"}))
      ->group(kGroup);
  command
      .add_option(
          "--kv-pool", pool_,
          "what the caches of all requests may take together: 6MiB, 4GiB (default: 80 % of the "
          "memory that is available, without weights and working memory, and no more than "
          "all requests can need)")
      ->type_name("SIZE")
      ->transform(KvBudgetSize())
      ->group(kGroup);
  command
      .add_option("--kv-target", target_,
                  "mean bits at which the tokens that are expected must fit for a request to be "
                  "let in, 4 to 16")
      ->transform(DecimalNumber(4, 16))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--kv-floor", floor_,
                  "bits below which no page of pm-kvq goes; less than --kv-target")
      ->transform(OneOf({"8", "4", "2"}))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--admission", admission_,
                  "expected: by the lengths of answers so far; guaranteed: only what fits at the "
                  "floor with all its tokens")
      ->transform(OneOf({"expected", "guaranteed"}))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--kv-step-bytes", step_bytes_,
                  "bytes of pages that one step may read to halve them ahead of need")
      ->type_name("SIZE")
      ->transform(KvBudgetSize())
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--kv-read-limit", read_limit_,
                  "bytes of all running requests, which are read for each token, above which pages "
                  "are halved from 16 to 8 bits though the pool has room (default: none)")
      ->type_name("SIZE")
      ->transform(KvBudgetSize())
      ->group(kGroup);
  command
      .add_option("--prefix-cache", prefix_cache_,
                  "prompts that end are kept in room of the pool that nobody needs, for prompts "
                  "that begin alike: on, off, or the most that they may take")
      ->type_name("on|off|SIZE")
      ->transform(PrefixCacheSize())
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--prefix-min-bits", prefix_min_bits_,
                  "bits below which a kept prompt is not taken over; what nobody has used for 10 s "
                  "is halved down to it before kept prompts are dropped")
      ->transform(OneOf({"16", "8", "4", "2"}))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_flag("--prefix-shared", prefix_shared_,
                "kept prompts are shared by all API keys: how fast an answer begins tells a client "
                "what others have sent")
      ->group(kGroup);
  command
      .add_flag("--allow-replay", allow_replay_,
                "the field kv_replay, the events of an earlier reply, repeats it bit for bit")
      ->group(kGroup);
  command
      .add_flag("--priorities", priorities_,
                "the field priority (-100 to 100) counts: lower ones keep bits and places longer")
      ->group(kGroup);
}

bool PoolCommandOptions::is_pool(bool is_isolated_by_default) const {
  return mode_.empty() ? !is_isolated_by_default : mode_ == "pool";
}

void PoolCommandOptions::Apply(bool is_pool, const std::function<int64_t()>& default_bytes,
                               SpecEngineOptions& options) const {
  if (!is_pool) {
    for (const char* name :
         {"--kv-pool", "--kv-target", "--kv-floor", "--admission", "--kv-step-bytes",
          "--kv-read-limit", "--prefix-cache", "--prefix-min-bits", "--prefix-shared",
          "--priorities", "--allow-replay"}) {
      if (command_->count(name) == 0) continue;
      throw InvalidInput(
          name, fmt::format("found it with {}, expected it in a pool only: with "
                            "--kv-mode pool",
                            mode_.empty() ? "--kv-budget or on a GPU" : "--kv-mode isolated"));
    }
    return;
  }
  options.kv.pool.bytes = pool_.empty() ? default_bytes() : ParseKvBudget(pool_);
  options.kv.pool.floor_bits = std::stoi(floor_);
  options.kv.pool.step_bytes = ParseKvBudget(step_bytes_);
  if (!read_limit_.empty()) options.kv.pool.read_limit_bytes = ParseKvBudget(read_limit_);
  options.kv.pool.prefix_bytes = prefix_cache_ == "off"  ? 0
                                 : prefix_cache_ == "on" ? options.kv.pool.bytes
                                                         : ParseKvBudget(prefix_cache_);
  if (prefix_cache_ == "off" && command_->count("--prefix-min-bits") > 0) {
    throw InvalidInput("--prefix-min-bits",
                       "found it with --prefix-cache off, expected one of them");
  }
  options.kv.pool.prefix_min_bits = std::stoi(prefix_min_bits_);
  options.kv.pool.prefix_may_be_off =
      command_->count("--prefix-cache") + command_->count("--prefix-min-bits") == 0;
  options.pool.target_bits = target_;
  options.pool.priorities = priorities_;
  options.pool.admission =
      admission_ == "guaranteed" ? PoolAdmission::kGuaranteed : PoolAdmission::kExpected;
}

std::string PoolCommandOptions::Note() const {
  if (std::stoi(prefix_min_bits_) >= std::stoi(floor_)) return "";
  return fmt::format("note: --prefix-min-bits {} is as {}: no page goes below --kv-floor",
                     prefix_min_bits_, floor_);
}

}  // namespace pmkvq::cli
