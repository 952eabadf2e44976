#include "pmkvq/model/ranks/model_ranks.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/forward_layout.h"
#include "pmkvq/model/model_impl.h"
#include "pmkvq/model/model_size.h"

namespace pmkvq {
namespace {

enum class Op : uint8_t {
  kEnd,
  kLoad,
  kForget,
  kMakeStore,
  kEndStore,
  kStore,  // An op of a store.
  kForward,
  kTask,
  kWatch,
};

// A record is sent before it grows beyond this: a pool's reservations without a Forward, say.
constexpr size_t kMostRecordBytes = size_t{1} << 20;
// Tokens after which ranks compare the states of their caches.
#ifdef NDEBUG
constexpr int64_t kTokensPerCheck = 256;
#else
constexpr int64_t kTokensPerCheck = 1;
#endif

std::string HostName() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

std::string TextOf(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::bad_alloc&) {
    return "out of memory";
  } catch (const std::exception& caught) {
    return caught.what();
  }
}

// Rows that rank 0 alone has logits of.
class NoReader final : public LogitReader {
 public:
  void Read(int64_t, int64_t, const float*) override {}
};

void PutFailures(const std::map<SequenceId, KvFailure>& failures, RecordWriter& record) {
  record.Put(static_cast<uint64_t>(failures.size()));
  for (const auto& [seq, failure] : failures) {
    record.Put(seq);
    record.PutText(failure.where);
    record.PutText(failure.what);
  }
}

// Failures that are there already stay.
void GetFailures(RecordReader& record, std::map<SequenceId, KvFailure>& failures) {
  const auto count = record.Get<uint64_t>();
  for (uint64_t i = 0; i < count; ++i) {
    const auto seq = record.Get<SequenceId>();
    KvFailure failure;
    failure.where = record.GetText();
    failure.what = record.GetText();
    failures.emplace(seq, std::move(failure));
  }
}

std::vector<SequenceId> SequencesOf(std::span<const ForwardChunk> chunks) {
  std::vector<SequenceId> sequences;
  for (const ForwardChunk& chunk : chunks) sequences.push_back(chunk.seq);
  return sequences;
}

}  // namespace

struct ModelRanks::Served {
  struct Part {
    std::shared_ptr<const Model> model;
    std::unique_ptr<StorePart> store;
  };
  std::map<int64_t, std::shared_ptr<const Model>> models;
  std::map<int64_t, Part> stores;
  ForwardWorkspace workspace;
};

ModelRanks::ModelRanks(Communicator& comm) : comm_(comm) { PMKVQ_CHECK(comm.size() > 1); }
ModelRanks::~ModelRanks() = default;

RecordWriter& ModelRanks::Begin(uint8_t op) {
  if (record_.bytes().size() > kMostRecordBytes) Send();
  record_.Put(op);
  return record_;
}

void ModelRanks::Send() {
  comm_.BroadcastString(&record_.bytes());
  record_.bytes().clear();
}

void ModelRanks::Agree(const std::exception_ptr& own) {
  if (comm_.AllTrue(own == nullptr)) return;
  const std::string text = own == nullptr ? "" : TextOf(own);
  const std::vector<std::string> texts =
      comm_.GatherStrings(text.empty() ? "" : HostName() + ": " + text);
  if (!is_leader()) return;
  if (own != nullptr) std::rethrow_exception(own);
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    if (!texts[rank].empty()) throw IoError(fmt::format("rank {}", rank), texts[rank]);
  }
}

std::shared_ptr<const Model> ModelRanks::Load(const std::string& folder,
                                              const ModelOptions& options) {
  const std::string path = std::filesystem::absolute(folder).string();
  // What the user got wrong is found here, before the others hear of it.
  Checkpoint checkpoint = Checkpoint::Open(folder);
  MakeShard(checkpoint.config(), checkpoint.weights(), options.weights, &comm_, options.tp_slices);
  RecordWriter& record = Begin(static_cast<uint8_t>(Op::kLoad));
  const int64_t id = next_id_++;
  record.Put(id);
  record.PutText(path);
  record.Put(options.weights);
  record.Put(options.num_threads);
  record.Put(options.tp_slices);
  record.PutText(checkpoint.Identity());
  Send();
  std::shared_ptr<const Model> model;
  std::exception_ptr error;
  try {
    model = Model::FromCheckpoint(std::move(checkpoint), options);
  } catch (...) {
    error = std::current_exception();
  }
  Agree(error);
  model_ids_[model.get()] = id;
  return model;
}

std::unique_ptr<KvStore> ModelRanks::MakeStore(const Model& model, const CacheConfig& config) {
  ValidateCacheConfig(config);  // With the sizes that the user knows.
  if (config.pool.prefix_bytes > 0) {
    throw Unsupported("--prefix-cache",
                      fmt::format("found one with {} ranks, which do not keep prompts; use "
                                  "--prefix-cache 0, or one rank",
                                  size()));
  }
  const int64_t id = next_id_++;
  RecordWriter& record = Begin(static_cast<uint8_t>(Op::kMakeStore));
  record.Put(id);
  record.Put(model_ids_.at(&model));
  PutCacheConfig(config, record);
  Send();
  std::unique_ptr<KvStore> local;
  std::exception_ptr error;
  try {
    local = MakePackedKvCache(LocalCacheConfig(config, *model.shard()));
  } catch (...) {
    error = std::current_exception();
  }
  Agree(error);
  auto store = std::make_unique<ShardedKvStore>(
      config, *model.shard(), std::move(local),
      [this, id](StoreOp op) -> RecordWriter& {
        RecordWriter& begun = Begin(static_cast<uint8_t>(Op::kStore));
        begun.Put(id);
        begun.Put(op);
        return begun;
      },
      [this, id] { record_.Put(Op::kEndStore), record_.Put(id); });
  store_ids_[store.get()] = id;
  return store;
}

void ModelRanks::Forget(const Model* model) noexcept {
  const auto found = model_ids_.find(model);
  if (found == model_ids_.end()) return;
  record_.Put(Op::kForget);
  record_.Put(found->second);
  model_ids_.erase(found);
}

void ModelRanks::RunTask(const std::string& arguments) {
  PMKVQ_CHECK(task_ != nullptr);
  Begin(static_cast<uint8_t>(Op::kTask)).PutText(arguments);
  Send();
  task_(comm_, arguments);
}

void ModelRanks::WatchFor(std::chrono::milliseconds timeout) {
  Begin(static_cast<uint8_t>(Op::kWatch)).Put(timeout);
  watchdog_ = std::make_unique<CommWatchdog>(comm_, timeout);
}

void ModelRanks::End(int exit_code) {
  if (has_ended_) return;
  has_ended_ = true;
  Begin(static_cast<uint8_t>(Op::kEnd)).Put(exit_code);
  Send();
}

std::vector<ForwardFailure> ModelRanks::Forward(const Model& model,
                                                std::span<const ForwardChunk> chunks,
                                                KvStore& store, ForwardWorkspace& workspace,
                                                int num_threads) {
  const UncancelledScope whole;  // The others would wait for ever.
  auto* const sharded = dynamic_cast<ShardedKvStore*>(&store);
  PMKVQ_CHECK_MSG(sharded != nullptr, "a model on several ranks with a store of one");
  try {
    RecordWriter& record = Begin(static_cast<uint8_t>(Op::kForward));
    record.Put(store_ids_.at(&store));
    record.Put(num_threads);
    record.Put(static_cast<uint64_t>(chunks.size()));
    for (const ForwardChunk& chunk : chunks) {
      record.Put(chunk.seq);
      record.PutAll(chunk.tokens);
      record.Put(chunk.start_pos);
      record.Put(chunk.logits);
      record.Put(chunk.one_by_one);
      record.Put(chunk.num_read);
      record.Put(chunk.ends_prompt);
      tokens_since_check_ += std::ssize(chunk.tokens);
    }
    const bool checks = tokens_since_check_ >= kTokensPerCheck;
    record.Put(checks);
    if (checks) {
      tokens_since_check_ = 0;
      record.Put(HashOfState(sharded->local(), SequencesOf(chunks), model.config().num_layers));
      record.PutText(
          DescribeState(sharded->local(), SequencesOf(chunks), model.config().num_layers));
    }
    Send();
    std::map<SequenceId, KvFailure> failed;
    std::vector<ForwardFailure> failures =
        RunStep(model, chunks, sharded->local(), failed, workspace, num_threads);
    for (const ForwardFailure& each : failures) {
      sharded->NoteFailure(chunks[each.chunk].seq, each.failure);
    }
    return failures;
  } catch (...) {
    comm_.Abort(TextOf(std::current_exception()));
    throw;
  }
}

// Of rank 0 `failed` is empty: it knows of those that have failed there. On return it has all.
std::vector<ForwardFailure> ModelRanks::RunStep(const Model& model,
                                                std::span<const ForwardChunk> chunks,
                                                KvStore& local,
                                                std::map<SequenceId, KvFailure>& failed,
                                                ForwardWorkspace& workspace, int num_threads) {
  const auto exchange = [&](std::map<SequenceId, KvFailure>& of_ranks) {
    if (comm_.AllTrue(of_ranks.empty())) return;
    RecordWriter mine;
    PutFailures(of_ranks, mine);
    const std::vector<std::string> all = comm_.GatherStrings(mine.bytes());
    RecordWriter merged;
    if (is_leader()) {
      for (const std::string& part : all) {
        RecordReader reader(part);
        GetFailures(reader, of_ranks);
      }
      PutFailures(of_ranks, merged);
    }
    comm_.BroadcastString(&merged.bytes());
    RecordReader reader(merged.bytes());
    GetFailures(reader, of_ranks);
  };

  // Sequences that failed on a rank when room was made are left out by all.
  std::map<SequenceId, KvFailure> before;
  for (const ForwardChunk& chunk : chunks) {
    const auto found = failed.find(chunk.seq);
    if (found != failed.end()) before.insert(*found);
  }
  exchange(before);
  std::vector<ForwardChunk> going_on;
  for (const ForwardChunk& chunk : chunks) {
    if (!before.contains(chunk.seq)) going_on.push_back(chunk);
  }
  std::map<SequenceId, KvFailure> during;
  for (const ForwardFailure& each : ForwardHere(model, going_on, local, workspace, num_threads)) {
    during.emplace(going_on[each.chunk].seq, each.failure);
  }
  exchange(during);

  std::vector<ForwardFailure> failures;
  const int64_t vocab_size = model.config().vocab_size;
  int64_t first_row = 0;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const int64_t num_rows = NumLogitRows(chunks[i]);
    const auto left_out = before.find(chunks[i].seq);
    if (left_out != before.end()) {
      failures.push_back({i, left_out->second});
      if (is_leader() && num_rows > 0) {
        // Callers count rows of all chunks: those of this one are undefined.
        workspace.logits.insert(workspace.logits.begin() + first_row * vocab_size,
                                static_cast<size_t>(num_rows * vocab_size), 0.0f);
        workspace.num_logit_rows += num_rows;
      }
    }
    const auto found = during.find(chunks[i].seq);
    if (found != during.end()) failures.push_back({i, found->second});
    first_row += num_rows;
  }
  return failures;
}

int ModelRanks::Serve() {
  PMKVQ_CHECK(!is_leader());
  const UncancelledScope whole;  // Rank 0 says when to stop.
  served_ = std::make_unique<Served>();
  int exit_code = 0;
  try {
    std::string bytes;
    while (true) {
      comm_.WaitForString(&bytes);
      RecordReader record(bytes);
      while (!record.AtEnd()) {
        if (DoRecord(record, &exit_code)) {
          served_.reset();
          return exit_code;
        }
      }
    }
  } catch (...) {
    comm_.Abort(TextOf(std::current_exception()));
    throw;
  }
}

bool ModelRanks::DoRecord(RecordReader& record, int* exit_code) {
  switch (record.Get<Op>()) {
    case Op::kEnd:
      *exit_code = record.Get<int>();
      return true;
    case Op::kLoad:
      DoLoad(record);
      return false;
    case Op::kForget:
      served_->models.erase(record.Get<int64_t>());
      return false;
    case Op::kMakeStore:
      DoMakeStore(record);
      return false;
    case Op::kEndStore:
      served_->stores.erase(record.Get<int64_t>());
      return false;
    case Op::kStore: {
      const auto id = record.Get<int64_t>();
      const std::string difference = served_->stores.at(id).store->Do(record);
      if (!difference.empty()) throw IoError("ranks", "the caches have diverged: " + difference);
      return false;
    }
    case Op::kForward:
      DoForward(record);
      return false;
    case Op::kTask: {
      const std::string arguments = record.GetText();
      PMKVQ_CHECK(task_ != nullptr);
      task_(comm_, arguments);
      return false;
    }
    case Op::kWatch:
      watchdog_ = std::make_unique<CommWatchdog>(comm_, record.Get<std::chrono::milliseconds>());
      return false;
  }
  PMKVQ_CHECK_MSG(false, "unknown record");
  return true;
}

void ModelRanks::DoLoad(RecordReader& record) {
  const auto id = record.Get<int64_t>();
  const std::string path = record.GetText();
  ModelOptions options;
  options.weights = record.Get<WeightMode>();
  options.num_threads = record.Get<int>();
  options.tp_slices = record.Get<int>();
  options.ranks = this;
  const std::string identity = record.GetText();
  std::exception_ptr error;
  try {
    Checkpoint checkpoint = Checkpoint::Open(path);
    if (checkpoint.Identity() != identity) {
      throw InvalidInput(path, fmt::format("found a model with the identity {}, rank 0 has {}",
                                           checkpoint.Identity(), identity));
    }
    served_->models[id] = Model::FromCheckpoint(std::move(checkpoint), options);
  } catch (...) {
    error = std::current_exception();
  }
  Agree(error);
}

void ModelRanks::DoMakeStore(RecordReader& record) {
  const auto id = record.Get<int64_t>();
  const std::shared_ptr<const Model> model = served_->models.at(record.Get<int64_t>());
  const CacheConfig config = GetCacheConfig(KvGeometryOf(model->config()), record);
  std::exception_ptr error;
  try {
    Served::Part part{model, std::make_unique<StorePart>(
                                 MakePackedKvCache(LocalCacheConfig(config, *model->shard())))};
    served_->stores[id] = std::move(part);
  } catch (...) {
    error = std::current_exception();
  }
  Agree(error);
}

void ModelRanks::DoForward(RecordReader& record) {
  Served::Part& part = served_->stores.at(record.Get<int64_t>());
  const Model& model = *part.model;
  KvStore& store = part.store->store();
  const auto num_threads = record.Get<int>();
  const auto count = record.Get<uint64_t>();
  NoReader no_reader;
  std::vector<std::vector<int32_t>> tokens(count);
  std::vector<ForwardChunk> chunks(count);
  for (uint64_t i = 0; i < count; ++i) {
    ForwardChunk& chunk = chunks[i];
    chunk.seq = record.Get<SequenceId>();
    tokens[i] = record.GetAll<int32_t>();
    chunk.tokens = tokens[i];
    chunk.start_pos = record.Get<int64_t>();
    chunk.logits = record.Get<ForwardChunk::Logits>();
    chunk.one_by_one = record.Get<bool>();
    chunk.num_read = record.Get<int64_t>();
    chunk.ends_prompt = record.Get<bool>();
    if (chunk.num_read > 0) chunk.reader = &no_reader;
  }
  std::map<SequenceId, KvFailure> failed = part.store->failures();
  if (record.Get<bool>()) {
    const auto expected = record.Get<uint64_t>();
    const std::string description = record.GetText();
    const int64_t num_layers = model.config().num_layers;
    const std::vector<SequenceId> sequences = SequencesOf(chunks);
    if (failed.empty() && HashOfState(store, sequences, num_layers) != expected) {
      throw IoError("ranks", fmt::format("the caches have diverged: {} here, {} on rank 0",
                                         DescribeState(store, sequences, num_layers), description));
    }
  }
  (void)RunStep(model, chunks, store, failed, served_->workspace, num_threads);
  (void)store.TakeHalvingEvents();  // Rank 0 tells them.
}

std::unique_ptr<KvStore> MakePackedStore(const Model& model, const CacheConfig& config) {
  if (model.ranks() != nullptr) return model.ranks()->MakeStore(model, config);
  if (model.shard() != nullptr) return MakePackedKvCache(LocalCacheConfig(config, *model.shard()));
  return MakePackedKvCache(config);
}

std::function<std::unique_ptr<KvStore>(const CacheConfig&)> PackedStoresOf(const Model& model) {
  if (model.shard() == nullptr) return nullptr;
  return [&model](const CacheConfig& config) { return MakePackedStore(model, config); };
}

void RefuseShards(const Model& model, const std::string& where) {
  if (model.shard() == nullptr) return;
  throw Unsupported(where, model.ranks() != nullptr
                               ? fmt::format("found {} ranks that share a model, expected whole "
                                             "models (one rank, or --tp 1)",
                                             model.shard()->size)
                               : std::string("found --tp-slices, expected a model without them"));
}

}  // namespace pmkvq
