// The native part of pmkvq.hf: a packed cache over tensors of PyTorch, which come by DLPack.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "hf_cache.h"
#include "pmkvq/base/check.h"
#include "pmkvq/io/checkpoint.h"
#include "pmkvq/tensor/device/device_info.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

// [B, T, H, D]; no copies: another type, order or device is refused.
using Heads = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using HeadsOut = nb::ndarray<float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
// [N, Hkv, D]
using Tokens = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// H, Hkv, D, sliding window (0: none).
using BlockNumbers = std::tuple<int64_t, int64_t, int64_t, int64_t>;

std::unique_ptr<HfCache> Make(const std::vector<BlockNumbers>& blocks, const std::string& kv,
                              const PlanFile* plan, const std::string& model_folder,
                              int64_t kv_budget, const std::string& kv_dtype, int64_t sink_tokens,
                              int64_t window_tokens, int floor_bits, int64_t max_len, int64_t chunk,
                              int threads) {
  HfCacheOptions options;
  options.kv.spec = kv;
  options.kv.budget_bytes = kv_budget;
  options.kv.kv_dtype = ParseKvDtype(kv_dtype);
  options.kv.sink_tokens = sink_tokens;
  options.kv.window_tokens = window_tokens;
  SetPlan(plan, options.kv);
  for (const auto& [heads, kv_heads, head_dim, window] : blocks) {
    const KvStream stream = StreamOf(kv_heads, head_dim);
    options.geometry.blocks.push_back({heads, {stream, stream}, window});
  }
  options.floor_bits = floor_bits;
  options.max_len = max_len;
  options.chunk = chunk;
  options.num_threads = threads;
  const nb::gil_scoped_release release;
  if (plan != nullptr && !model_folder.empty()) {
    CheckPlanMatches(*plan->plan, Checkpoint::Open(model_folder).Identity(), options.kv.plan_path);
  }
  return std::make_unique<HfCache>(options);
}

// The package makes the arrays, so a wrong shape is its bug.
template <class Array>
void CheckShape(const Array& array, int64_t batch, int64_t tokens, int64_t heads, int64_t width) {
  PMKVQ_CHECK(static_cast<int64_t>(array.shape(0)) == batch &&
              static_cast<int64_t>(array.shape(1)) == tokens &&
              static_cast<int64_t>(array.shape(2)) == heads &&
              static_cast<int64_t>(array.shape(3)) == width);
}

bool Append(HfCache& cache, int64_t layer, const std::optional<Heads>& q, const Heads& k,
            const Heads& v, const std::optional<HeadsOut>& out, double query_factor,
            const std::vector<int64_t>& skip) {
  const nb::gil_scoped_release release;
  const KvBlockGeometry& geometry = cache.config().geometry.block(layer);
  const int64_t batch = cache.batch_size();
  const auto tokens = static_cast<int64_t>(k.shape(1));
  CheckShape(k, batch, tokens, geometry.k().heads, geometry.k().width);
  CheckShape(v, batch, tokens, geometry.v().heads, geometry.v().width);
  HfRows rows;
  rows.k = k.data();
  rows.v = v.data();
  rows.num_tokens = tokens;
  rows.query_factor = static_cast<float>(query_factor);
  rows.skip = skip;
  if (q) {
    PMKVQ_CHECK(out.has_value());
    CheckShape(*q, batch, tokens, geometry.num_heads, geometry.k().width);
    CheckShape(*out, batch, tokens, geometry.num_heads, geometry.k().width);
    rows.q = q->data();
    rows.out = out->data();
  }
  return cache.Append(layer, rows);
}

// Addresses of a device. The package has checked type, shape and order of the tensors.
template <class T>
T* AddressOf(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

bool AppendOnDevice(HfCache& cache, int64_t layer, uintptr_t q, uintptr_t k, uintptr_t v,
                    uintptr_t out, int64_t num_tokens, const std::vector<int64_t>& skip,
                    uintptr_t stream) {
  const nb::gil_scoped_release release;
  HfRows rows;
  rows.q = AddressOf<const float>(q);
  rows.k = AddressOf<const float>(k);
  rows.v = AddressOf<const float>(v);
  rows.out = AddressOf<float>(out);
  rows.num_tokens = num_tokens;
  rows.skip = skip;
  rows.stream = AddressOf<CUstream_st>(stream);
  return cache.Append(layer, rows);
}

// What PyTorch calls its types, as the package gives them.
DType FloatTypeOf(int float_bits, bool is_bfloat) {
  if (float_bits == 32) return DType::kF32;
  return is_bfloat ? DType::kBF16 : DType::kF16;
}

bool AppendToken(HfCache& cache, int64_t layer, uintptr_t q, uintptr_t k, uintptr_t v,
                 uintptr_t out, int float_bits, bool is_bfloat, double query_factor,
                 uintptr_t query_factors, uintptr_t key_factors, uintptr_t stream) {
  const nb::gil_scoped_release release;
  HfToken token;
  token.heads.q = AddressOf<const std::byte>(q);
  token.heads.k = AddressOf<const std::byte>(k);
  token.heads.v = AddressOf<const std::byte>(v);
  token.heads.type = FloatTypeOf(float_bits, is_bfloat);
  token.heads.query_factor = static_cast<float>(query_factor);
  token.heads.query_factors = AddressOf<const float>(query_factors);
  token.heads.key_factors = AddressOf<const float>(key_factors);
  token.out = AddressOf<std::byte>(out);
  token.stream = AddressOf<CUstream_st>(stream);
  return cache.AppendToken(layer, token);
}

int64_t ReadOnDevice(HfCache& cache, int64_t layer, int64_t row, uintptr_t k_pages,
                     uintptr_t v_pages, uintptr_t k_rest, uintptr_t v_rest, uintptr_t stream) {
  const nb::gil_scoped_release release;
  DeviceTokens tokens;
  tokens.k_pages = AddressOf<std::byte>(k_pages);
  tokens.v_pages = AddressOf<std::byte>(v_pages);
  tokens.k_rest = AddressOf<std::byte>(k_rest);
  tokens.v_rest = AddressOf<std::byte>(v_rest);
  return cache.ReadOnDevice(layer, row, tokens, AddressOf<CUstream_st>(stream));
}

// Of queries and of keys, [heads * D / 2] each: a factor for each pair of dims i and i + D / 2.
std::optional<std::pair<std::vector<float>, std::vector<float>>> KeyScalesOf(const HfCache& cache,
                                                                             int64_t layer) {
  const KeyScales* const scales = cache.config().key_scales.get();
  if (scales == nullptr) return std::nullopt;
  const KvBlockGeometry& block = cache.config().geometry.block(layer);
  const float* const q = scales->query_factors(layer);
  const float* const k = scales->key_factors(layer);
  return std::pair(std::vector(q, q + block.q_values() / 2),
                   std::vector(k, k + block.k().values() / 2));
}

void Open(HfCache& cache, int64_t batch_size, const std::string& device) {
  const std::optional<DeviceId> id = ParseDevice(device);
  PMKVQ_CHECK(id.has_value());
  if (id->device != Device::kCpu) Query(*id);
  cache.Open(batch_size, *id);
}

std::pair<nb::bytes, nb::bytes> PackedBytes(HfCache& cache, int64_t layer, int64_t row) {
  const auto sides = [&] {
    const nb::gil_scoped_release release;
    return cache.PackedBytes(layer, row);
  }();
  return {nb::bytes(sides[0].data(), sides[0].size()), nb::bytes(sides[1].data(), sides[1].size())};
}

void Read(HfCache& cache, int64_t layer, int64_t row, const Tokens& k, const Tokens& v) {
  const KvStream& stream = cache.config().geometry.block(layer).k();
  const nb::gil_scoped_release release;
  for (const Tokens* const array : {&k, &v}) {
    PMKVQ_CHECK(static_cast<int64_t>(array->shape(0)) == cache.NumTokens(layer, row) &&
                static_cast<int64_t>(array->shape(1)) == stream.heads &&
                static_cast<int64_t>(array->shape(2)) == stream.width);
  }
  cache.Read(layer, row, k.data(), v.data());
}

}  // namespace

void BindHf(nb::module_& module) {
  nb::class_<HfCacheStats>(module, "HfCacheStats")
      .def_ro("bytes", &HfCacheStats::bytes)
      .def_ro("peak_bytes", &HfCacheStats::peak_bytes)
      .def_ro("budget_bytes", &HfCacheStats::budget_bytes)
      .def_ro("arena_bytes", &HfCacheStats::arena_bytes)
      .def_ro("scratch_bytes", &HfCacheStats::scratch_bytes)
      .def_ro("halved_pages", &HfCacheStats::halved_pages)
      .def_prop_ro(
          "pages",
          [](const HfCacheStats& self) {
            nb::dict pages;
            for (size_t i = 0; i < kWidths.size(); ++i) pages[nb::int_(kWidths[i])] = self.pages[i];
            return pages;
          },
          nb::sig("def pages(self) -> dict[int, int]"));

  using WithoutGil = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<HfCache>(module, "HfCache")
      .def_static("make", &Make, nb::arg("blocks"), nb::kw_only(), nb::arg("kv"),
                  nb::arg("plan").none(), nb::arg("model_folder"), nb::arg("kv_budget"),
                  nb::arg("kv_dtype"), nb::arg("sink_tokens"), nb::arg("window_tokens"),
                  nb::arg("floor_bits"), nb::arg("max_len"), nb::arg("chunk"), nb::arg("threads"))
      .def_prop_ro("batch_size", &HfCache::batch_size, WithoutGil())
      .def("open", &Open, nb::arg("batch_size"), nb::arg("device"), WithoutGil())
      .def("close", &HfCache::Close, WithoutGil())
      .def(
          "has_room",
          [](HfCache& self, const std::vector<int64_t>& tokens) { return self.HasRoom(tokens); },
          nb::arg("tokens"), WithoutGil())
      // Arrays are tensors as a rule, which NumPy's types do not name.
      .def("append", &Append, nb::arg("layer"), nb::arg("q").noconvert().none(),
           nb::arg("k").noconvert(), nb::arg("v").noconvert(), nb::arg("out").noconvert().none(),
           nb::arg("query_factor"), nb::arg("skip"),
           nb::sig("def append(self, layer: int, q: object, k: object, v: object, out: object, "
                   "query_factor: float, skip: list[int]) -> bool"))
      .def("read", &Read, nb::arg("layer"), nb::arg("row"), nb::arg("k").noconvert(),
           nb::arg("v").noconvert(),
           nb::sig("def read(self, layer: int, row: int, k: object, v: object) -> None"))
      .def("append_on_device", &AppendOnDevice, nb::arg("layer"), nb::arg("q"), nb::arg("k"),
           nb::arg("v"), nb::arg("out"), nb::arg("num_tokens"), nb::arg("skip"), nb::arg("stream"))
      .def("append_token", &AppendToken, nb::arg("layer"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("out"), nb::arg("float_bits"), nb::arg("is_bfloat"), nb::arg("query_factor"),
           nb::arg("query_factors"), nb::arg("key_factors"), nb::arg("stream"))
      .def("read_on_device", &ReadOnDevice, nb::arg("layer"), nb::arg("row"), nb::arg("k_pages"),
           nb::arg("v_pages"), nb::arg("k_rest"), nb::arg("v_rest"), nb::arg("stream"))
      .def("packed_bytes", &PackedBytes, nb::arg("layer"), nb::arg("row"))
      .def("key_scales", &KeyScalesOf, nb::arg("layer"))
      .def_prop_ro("sink_tokens", [](const HfCache& self) { return self.config().sink_tokens; })
      .def_prop_ro("rotates_keys", [](const HfCache& self) { return self.config().rotate_keys; })
      .def_prop_ro("rotates_values",
                   [](const HfCache& self) { return self.config().rotate_values; })
      .def("num_tokens", &HfCache::NumTokens, nb::arg("layer"), nb::arg("row"))
      .def("can_truncate", &HfCache::CanTruncate, nb::arg("layer"), nb::arg("row"),
           nb::arg("num_tokens"))
      .def("truncate", &HfCache::Truncate, nb::arg("layer"), nb::arg("row"), nb::arg("num_tokens"),
           WithoutGil())
      .def(
          "select",
          [](HfCache& self, int64_t layer, const std::vector<int64_t>& rows) {
            self.Select(layer, rows);
          },
          nb::arg("layer"), nb::arg("rows"), WithoutGil())
      .def("copy", &HfCache::Copy, WithoutGil())
      .def("stats", &HfCache::Stats, WithoutGil());
}

}  // namespace pmkvq::python
