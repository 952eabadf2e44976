// Move plans on CUDA: the records of a wave by what they do, a launch for each kind.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/fragment_page.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/kv/packed/move_executor.h"
#include "pmkvq/tensor/device/cuda_runtime.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq::internal {
namespace {

// Records of a wave that are one launch.
struct Group {
  PageOp like;
  std::vector<PageMove> moves;
  std::vector<uint32_t> ops;  // Of each move, its record in the wave.

  bool Takes(const PageOp& op) const {
    return op.kind == like.kind && op.from_bits == like.from_bits && op.to_bits == like.to_bits &&
           op.side == like.side && op.axis == like.axis;
  }
};

std::vector<Group> GroupsOf(std::span<const PageOp> wave) {
  std::vector<Group> groups;
  for (size_t i = 0; i < wave.size(); ++i) {
    const PageOp& op = wave[i];
    if (op.kind == PageOpKind::kCopy) continue;
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const Group& other) { return other.Takes(op); });
    if (group == groups.end()) {
      groups.push_back({op, {}, {}});
      group = groups.end() - 1;
    }
    group->moves.push_back({op.source.offset, op.target.offset, op.metadata.offset});
    group->ops.push_back(static_cast<uint32_t>(i));
  }
  return groups;
}

// A word of the device that quantising sets, in stream order. Allocated by the first Reset.
class UnfitWord {
 public:
  explicit UnfitWord(Stream& stream) : stream_(stream) {}
  ~UnfitWord() {
    if (word_ != nullptr) static_cast<void>(cudaFreeAsync(word_, stream_.handle()));
  }
  UnfitWord(const UnfitWord&) = delete;
  UnfitWord& operator=(const UnfitWord&) = delete;

  void Reset() {
    if (word_ == nullptr) {
      const CudaDeviceScope scope(stream_.device());
      CheckCuda(cudaMallocAsync(&word_, sizeof(uint32_t), stream_.handle()), "a word of memory");
    }
    FillOnDevice(stream_, static_cast<std::byte*>(word_), 0xff, sizeof(uint32_t));
  }
  uint32_t* address() const { return static_cast<uint32_t*>(word_); }
  // Waits. The least index that did not fit, if one did.
  std::optional<uint32_t> Read() const {
    uint32_t value = 0;
    CopyToHost(stream_, &value, static_cast<const std::byte*>(word_), sizeof(value));
    stream_.Synchronize();
    return value == UINT32_MAX ? std::nullopt : std::optional(value);
  }

 private:
  Stream& stream_;
  void* word_ = nullptr;
};

class Executor {
 public:
  Executor(const BlockCodecs& codecs, const DeviceBytes& arena, Stream& stream,
           uint32_t* unfit_word)
      : codecs_(codecs), arena_(arena), stream_(stream), unfit_word_(unfit_word), unfit_(stream) {
    CheckSupported();
  }

  std::optional<UnfitPage> Run(const MovePlan& plan) {
    std::optional<UnfitPage> first;
    for (size_t i = 0; i < plan.num_waves(); ++i) {
      const std::optional<uint32_t> unfit = RunWave(plan.wave(i));
      // Its 16-bit slot is as it was: nothing of this wave is written there.
      if (unfit && !first) first = Describe(plan.wave(i)[*unfit]);
    }
    return first;
  }

 private:
  void CheckSupported() const {
    for (const Side side : kSides) CheckSupported(codecs_.of(side));
  }
  void CheckSupported(const PageCodec& codec) const {
    const DType type = codec.float_type();
    if (type != DType::kF16 && type != DType::kBF16) {
      throw Unsupported(NameOf(arena_.device),
                        fmt::format("the cache: found values of {}, expected F16 or BF16; use "
                                    "--device cpu",
                                    NameOf(type)));
    }
    const int64_t width = codec.stream().width;
    if (!(codecs_.are_latents ? fragment::IsRowWidth(width) : fragment::IsHeadDim(width))) {
      throw Unsupported(NameOf(arena_.device),
                        fmt::format("the cache: found heads of {} values, expected 64, 128 or 256; "
                                    "use --device cpu",
                                    codec.stream().width));
    }
  }

  FragmentPageShape ShapeOf(const PageOp& op) const {
    const KvStream& stream = codecs_.of(op.side).stream();
    return {stream.heads, stream.width, op.side == kValues && !codecs_.are_latents,
            op.axis == QuantAxis::kChannel};
  }

  // The first record whose page did not fit.
  std::optional<uint32_t> RunWave(std::span<const PageOp> wave) {
    std::optional<uint32_t> first;
    for (const PageOp& op : wave) {
      if (op.kind == PageOpKind::kCopy) {
        CopyOnDevice(stream_, arena_.data + op.target.offset, arena_.data + op.source.offset,
                     op.source.bytes);
      }
    }
    for (const Group& group : GroupsOf(wave)) {
      const std::optional<uint32_t> unfit = RunGroup(group);
      if (unfit && (!first || *unfit < *first)) first = unfit;
    }
    return first;
  }

  std::optional<uint32_t> RunGroup(const Group& group) {
    const PageOp& op = group.like;
    const FragmentPageShape shape = ShapeOf(op);
    switch (op.kind) {
      case PageOpKind::kCopy:
        break;
      case PageOpKind::kHalve:
        HalvePages(shape, op.from_bits, op.to_bits, group.moves, arena_.data, stream_);
        break;
      case PageOpKind::kExpand:
        ExpandPages(shape, codecs_.of(op.side).float_type(), op.from_bits, group.moves, arena_.data,
                    stream_);
        break;
      case PageOpKind::kQuantize: {
        if (unfit_word_ != nullptr) {
          QuantizePages(shape, codecs_.of(op.side).float_type(), op.to_bits, group.moves,
                        arena_.data, unfit_word_, 0, stream_);
          break;
        }
        unfit_.Reset();
        QuantizePages(shape, codecs_.of(op.side).float_type(), op.to_bits, group.moves, arena_.data,
                      unfit_.address(), 0, stream_);
        const std::optional<uint32_t> move = unfit_.Read();
        if (move) return group.ops[*move];
        break;
      }
    }
    return std::nullopt;
  }

  UnfitPage Describe(const PageOp& op) const {
    std::vector<std::byte> fragments(op.source.bytes);
    std::vector<std::byte> planes(op.source.bytes);
    CopyToHost(stream_, fragments.data(), arena_.data + op.source.offset, fragments.size());
    stream_.Synchronize();
    FragmentsToPlanes(ShapeOf(op), 16, fragments.data(), planes.data());
    return {op.page, *codecs_.of(op.side).FindUnfitGroup(planes.data(), op.axis)};
  }

  const BlockCodecs& codecs_;
  DeviceBytes arena_;
  Stream& stream_;
  uint32_t* unfit_word_;
  UnfitWord unfit_;
};

}  // namespace

std::optional<UnfitPage> ExecuteMovesCuda(const MovePlan& plan, const BlockCodecs& codecs,
                                          const DeviceBytes& arena, const ExecContext& exec,
                                          uint32_t* unfit_word) {
  PMKVQ_CHECK(exec.stream != nullptr && exec.stream->device() == arena.device);
  if (plan.num_waves() == 0) return std::nullopt;
  return Executor(codecs, arena, *exec.stream, unfit_word).Run(plan);
}

}  // namespace pmkvq::internal
