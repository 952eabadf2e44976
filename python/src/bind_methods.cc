// Cache methods that are written in Python (pmkvq/methods.py) in the registry of SPECs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include "bindings.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/kv_failure.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/registry.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

template <int Axes, class Value>
using Copy = nb::ndarray<nb::numpy, Value, nb::ndim<Axes>>;

template <class Value, size_t Axes>
Copy<static_cast<int>(Axes), Value> NewArray(const size_t (&shape)[Axes]) {
  size_t count = 1;
  for (const size_t size : shape) count *= size;
  auto* const values = new Value[std::max<size_t>(count, 1)];
  const nb::capsule owner(values, [](void* data) noexcept { delete[] static_cast<Value*>(data); });
  return {values, Axes, shape, owner};
}

// A Python object that threads without the GIL hold and give up.
class Held {
 public:
  explicit Held(nb::object object) : object_(std::move(object)) {}
  ~Held() {
    if (Py_IsInitialized() == 0) {  // The interpreter took its objects with it.
      object_.release();
      return;
    }
    const nb::gil_scoped_acquire acquire;
    object_.reset();
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  const nb::object& get() const { return object_; }

 private:
  nb::object object_;
};

// A block of one sequence during OnAppend. Python may keep it for longer, but not use it.
struct BlockHandle {
  SimulatedBlock* block = nullptr;

  SimulatedBlock& Get() const {
    if (block != nullptr) return *block;
    throw InvalidInput("block", "its on_append is over; expected a copy of what is kept");
  }
};

enum class Side { kKeys, kValues };

void CheckTokens(const SimulatedBlock& block, int64_t first, int64_t last) {
  if (first >= 0 && first <= last && last <= block.num_tokens()) return;
  throw InvalidInput("block", "found tokens " + std::to_string(first) + " to " +
                                  std::to_string(last) + ", expected a part of 0 to " +
                                  std::to_string(block.num_tokens()));
}

// [last - first, Hkv, D]
Copy<3, float> ReadRows(const BlockHandle& handle, Side side, int64_t first, int64_t last) {
  const SimulatedBlock& block = handle.Get();
  CheckTokens(block, first, last);
  const auto heads = static_cast<size_t>(block.num_kv_heads());
  const auto dim = static_cast<size_t>(block.head_dim());
  auto rows = NewArray<float>({static_cast<size_t>(last - first), heads, dim});
  float* out = rows.data();
  for (int64_t token = first; token < last; ++token) {
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      const float* row = side == Side::kKeys ? block.Key(token, head) : block.Value(token, head);
      out = std::copy_n(row, dim, out);
    }
  }
  return rows;
}

using GivenRows = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void WriteRows(const BlockHandle& handle, Side side, int64_t first, const GivenRows& rows) {
  SimulatedBlock& block = handle.Get();
  CheckTokens(block, first, first + static_cast<int64_t>(rows.shape(0)));
  if (static_cast<int64_t>(rows.shape(1)) != block.num_kv_heads() ||
      static_cast<int64_t>(rows.shape(2)) != block.head_dim()) {
    throw InvalidInput("block", "found rows of another shape, expected [tokens, Hkv, D]");
  }
  const float* in = rows.data();
  for (size_t i = 0; i < rows.shape(0); ++i) {
    const int64_t token = first + static_cast<int64_t>(i);
    for (int64_t head = 0; head < block.num_kv_heads(); ++head, in += block.head_dim()) {
      float* const row = side == Side::kKeys ? block.Key(token, head) : block.Value(token, head);
      std::copy_n(in, block.head_dim(), row);
    }
  }
}

// What tells that a sequence cannot go on is the request's error, not the method's.
template <class Call>
auto CallPython(const Call& call) {
  try {
    return call();
  } catch (const nb::python_error& error) {
    if (!error.matches(nb::module_::import_("pmkvq._errors").attr("UnfitValues"))) throw;
    throw UnfitValues(nb::cast<std::string>(nb::str(error.value())));
  }
}

class PythonState final : public MethodState {
 public:
  explicit PythonState(nb::object state) : state_(std::move(state)) {}
  void Truncate(int64_t num_tokens) override {
    const nb::gil_scoped_acquire acquire;
    if (!state_.get().is_none()) state_.get().attr("truncate")(num_tokens);
  }
  const nb::object& get() const { return state_.get(); }

 private:
  Held state_;
};

// `adapter` is an object of pmkvq.methods._Adapter, whose functions check what the method returns
// and raise one exception for whatever goes wrong in it.
class PythonMethod final : public CacheMethod {
 public:
  // With the GIL.
  PythonMethod(nb::object adapter, const UniformKvGeometry& geometry)
      : adapter_(std::move(adapter)),
        geometry_(geometry),
        bytes_(static_cast<size_t>(geometry.num_layers)) {
    const nb::object& py = adapter_.get();
    needs_ = {nb::cast<bool>(py.attr("keys_before_rope")), nb::cast<bool>(py.attr("attention")),
              nb::cast<bool>(py.attr("block_input"))};
    for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
      const auto [from, period] = nb::cast<std::pair<int64_t, int64_t>>(py.attr("growth")(layer));
      growth_.push_back({from, period});
    }
  }

  MethodNeeds needs() const override { return needs_; }

  std::unique_ptr<MethodState> NewState(int64_t layer) const override {
    const nb::gil_scoped_acquire acquire;
    return std::make_unique<PythonState>(adapter_.get().attr("new_state")(layer));
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* state) const override {
    const nb::gil_scoped_acquire acquire;
    const nb::object handle = nb::cast(BlockHandle{&block});
    struct Ends {
      BlockHandle& handle;
      ~Ends() { handle.block = nullptr; }
    } const ends{nb::cast<BlockHandle&>(handle)};
    const auto count = static_cast<size_t>(tokens.count);
    nb::object q = ArrayOf<const float>(tokens.q, {count, static_cast<size_t>(geometry_.num_heads),
                                                   static_cast<size_t>(geometry_.head_dim)});
    nb::object sums = ArrayOf<const double>(
        tokens.attention_sums,
        {static_cast<size_t>(geometry_.num_kv_heads), static_cast<size_t>(block.num_tokens())});
    nb::object input =
        ArrayOf<const float>(tokens.block_input, {count, static_cast<size_t>(tokens.input_width)});
    CallPython([&] {
      return adapter_.get().attr("on_append")(layer, tokens.first, tokens.count, handle, q, sums,
                                              input, static_cast<PythonState*>(state)->get());
    });
  }

  // Calls into Python are slow, so block_bytes is called once for each length and its result kept.
  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    if (num_tokens == 0) return 0;
    const auto index = static_cast<size_t>(num_tokens);
    std::vector<int64_t>& known = bytes_[static_cast<size_t>(layer)];
    {
      const std::lock_guard lock(mutex_);
      if (index < known.size() && known[index] >= 0) return known[index];
    }
    int64_t bytes = 0;
    {
      const nb::gil_scoped_acquire acquire;
      bytes = nb::cast<int64_t>(adapter_.get().attr("block_bytes")(layer, num_tokens));
    }
    constexpr size_t kMostKnown = size_t{1} << 20;
    if (index >= kMostKnown) return bytes;
    const std::lock_guard lock(mutex_);  // Not while Python runs, which may ask on another thread.
    if (index >= known.size()) known.resize(index + 1, -1);
    known[index] = bytes;
    return bytes;
  }
  ByteGrowth Growth(int64_t layer) const override { return growth_[static_cast<size_t>(layer)]; }

 private:
  // A copy; None for null.
  template <class Value, size_t Axes>
  static nb::object ArrayOf(Value* values, const size_t (&shape)[Axes]) {
    if (values == nullptr) return nb::none();
    auto copy = NewArray<std::remove_const_t<Value>>(shape);
    std::copy_n(values, copy.size(), copy.data());
    return nb::cast(std::move(copy));
  }

  Held adapter_;
  UniformKvGeometry geometry_;
  MethodNeeds needs_;
  std::vector<ByteGrowth> growth_;  // Per block.
  mutable std::mutex mutex_;
  mutable std::vector<std::vector<int64_t>> bytes_;  // Per block and length; -1: not asked yet.
};

// Kind, name, least, most, choices, default, help.
using KeyOf = std::tuple<std::string, std::string, double, double, std::vector<std::string>,
                         std::string, std::string>;

SpecKey MakeKey(const KeyOf& key) {
  const auto& [kind, name, least, most, choices, fallback, help] = key;
  if (kind == "integer") {
    return IntegerKey(name, static_cast<int64_t>(least), static_cast<int64_t>(most), fallback,
                      help);
  }
  if (kind == "real") return RealKey(name, least, most, fallback, help);
  if (kind == "choice") return ChoiceKey(name, choices, fallback, help);
  if (kind == "file") return FileKey(name, fallback, help);
  return WordKey(name, help);
}

// factory(values, words, text, (layers, heads, KV heads, head size, float type)) makes an adapter.
void Add(const std::string& name, const std::string& description, const std::vector<KeyOf>& keys,
         const std::string& code_hash, nb::object factory) {
  SimulatedMethod method;
  method.name = name;
  method.description = description;
  for (const KeyOf& key : keys) method.keys.push_back(MakeKey(key));
  method.code_hash = code_hash;
  method.make = [made_by = std::make_shared<const Held>(std::move(factory))](
                    const MethodSpec& spec, const MethodContext& context) {
    const nb::gil_scoped_acquire acquire;
    nb::dict values;
    for (const auto& [key, value] : spec.keys) values[nb::str(key.c_str())] = value;
    nb::list words;
    for (const std::string& word : spec.words) words.append(word);
    const UniformKvGeometry& geometry = context.geometry;
    nb::object adapter = made_by->get()(
        values, words, spec.text,
        nb::make_tuple(geometry.num_layers, geometry.num_heads, geometry.num_kv_heads,
                       geometry.head_dim, std::string(NameOf(context.float_type))));
    return std::make_shared<const PythonMethod>(std::move(adapter), geometry);
  };
  AddMethod(std::move(method));
}

DType FloatTypeNamed(const std::string& name) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    if (name == NameOf(type)) return type;
  }
  throw InvalidInput("metadata", "found '" + name + "', expected F16, BF16 or F32");
}

using Groups = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

}  // namespace

void BindMethods(nb::module_& module) {
  nb::class_<BlockHandle>(module, "MethodBlock")
      .def_prop_ro("num_tokens", [](const BlockHandle& self) { return self.Get().num_tokens(); })
      .def_prop_ro("num_kv_heads",
                   [](const BlockHandle& self) { return self.Get().num_kv_heads(); })
      .def_prop_ro("head_dim", [](const BlockHandle& self) { return self.Get().head_dim(); })
      .def(
          "read_keys",
          [](const BlockHandle& self, int64_t first, int64_t last) {
            return ReadRows(self, Side::kKeys, first, last);
          },
          nb::arg("first"), nb::arg("last"))
      .def(
          "read_values",
          [](const BlockHandle& self, int64_t first, int64_t last) {
            return ReadRows(self, Side::kValues, first, last);
          },
          nb::arg("first"), nb::arg("last"))
      .def(
          "write_keys",
          [](const BlockHandle& self, int64_t first, const GivenRows& rows) {
            WriteRows(self, Side::kKeys, first, rows);
          },
          nb::arg("first"), nb::arg("rows").noconvert())
      .def(
          "write_values",
          [](const BlockHandle& self, int64_t first, const GivenRows& rows) {
            WriteRows(self, Side::kValues, first, rows);
          },
          nb::arg("first"), nb::arg("rows").noconvert());

  module.def("add_method", &Add, nb::arg("name"), nb::arg("description"), nb::arg("keys"),
             nb::arg("code_hash"), nb::arg("factory"));
  module.def("remove_method", &RemoveMethod, nb::arg("name"));
  module.def("list_methods", [] {
    std::vector<std::tuple<std::string, std::string, bool>> methods;
    for (const MethodInfo& one : ListMethods()) {
      methods.emplace_back(one.name, one.description, one.is_simulated);
    }
    return methods;
  });
  module.def(
      "damage_groups",
      [](const Groups& groups, int bits, const std::string& metadata) {
        const AffineFormat format{bits, FloatTypeNamed(metadata)};
        const auto size = static_cast<int64_t>(groups.shape(1));
        const nb::gil_scoped_release release;
        for (size_t i = 0; i < groups.shape(0); ++i) {
          DamageGroup(format, size, 1, groups.data() + static_cast<int64_t>(i) * size);
        }
      },
      nb::arg("groups").noconvert(), nb::arg("bits"), nb::arg("metadata"));
  module.def(
      "affine_bytes",
      [](int bits, const std::string& metadata, int64_t num_values, int64_t group) {
        return AffineBytes({bits, FloatTypeNamed(metadata)}, num_values, group);
      },
      nb::arg("bits"), nb::arg("metadata"), nb::arg("num_values"), nb::arg("group"));
}

}  // namespace pmkvq::python
