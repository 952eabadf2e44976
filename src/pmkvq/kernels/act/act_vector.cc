#include "pmkvq/kernels/act/act_vector.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/act/act_vector.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// 1 / (1 + exp(-z)), with an exponential that cannot overflow.
HWY_INLINE V Sigmoid(V z) {
  const D d;
  const V one = hn::Set(d, 1.0f);
  const V e = hn::Exp(d, hn::Neg(hn::Abs(z)));
  return hn::Div(hn::IfThenElse(hn::Lt(z, hn::Zero(d)), e, one), hn::Add(one, e));
}

// Runs op(offset pointers...) on whole vectors; the tail goes through the same vector code in
// padded copies, so that an element's bits do not depend on its place.
template <int kInputs, int kOutputs, class Op>
HWY_INLINE void Map(const float* const (&in)[kInputs], float* const (&out)[kOutputs], size_t count,
                    const Op& op) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  V values[kInputs];
  V results[kOutputs];
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (int j = 0; j < kInputs; ++j) values[j] = hn::LoadU(d, in[j] + i);
    op(values, results);
    for (int j = 0; j < kOutputs; ++j) hn::StoreU(results[j], d, out[j] + i);
  }
  if (i == count) return;
  HWY_ALIGN float padded[hn::MaxLanes(D())] = {};
  for (int j = 0; j < kInputs; ++j) {
    std::memcpy(padded, in[j] + i, (count - i) * sizeof(float));
    values[j] = hn::Load(d, padded);
  }
  op(values, results);
  for (int j = 0; j < kOutputs; ++j) {
    hn::Store(results[j], d, padded);
    std::memcpy(out[j] + i, padded, (count - i) * sizeof(float));
  }
}

struct SiluMulOp {
  HWY_INLINE void operator()(const V (&in)[2], V (&out)[1]) const {
    out[0] = hn::Mul(hn::Mul(in[0], Sigmoid(in[0])), in[1]);
  }
};

// silu'(z) = s (1 + z (1 - s)) with s = sigmoid(z).
struct SiluMulGradOp {
  HWY_INLINE void operator()(const V (&in)[3], V (&out)[2]) const {
    const D d;
    const V one = hn::Set(d, 1.0f);
    const V z = in[0];
    const V s = Sigmoid(z);
    const V slope = hn::Mul(s, hn::MulAdd(z, hn::Sub(one, s), one));
    out[0] = hn::Mul(hn::Mul(in[2], in[1]), slope);
    out[1] = hn::Mul(in[2], hn::Mul(z, s));
  }
};

struct GeluMulOp {
  HWY_INLINE void operator()(const V (&in)[2], V (&out)[1]) const {
    const D d;
    const V z = in[0];
    const V slope = hn::MulAdd(hn::Set(d, static_cast<float>(kGeluCubic)), hn::Mul(z, z),
                               hn::Set(d, static_cast<float>(kGeluLinear)));
    out[0] = hn::Mul(hn::Mul(z, Sigmoid(hn::Mul(z, slope))), in[1]);
  }
};

// gelu'(z) = s + z s (1 - s) a'(z) with s = sigmoid(a), a = kGeluLinear z + kGeluCubic z^3.
struct GeluMulGradOp {
  HWY_INLINE void operator()(const V (&in)[3], V (&out)[2]) const {
    const D d;
    const V linear = hn::Set(d, static_cast<float>(kGeluLinear));
    const V cubic = hn::Set(d, static_cast<float>(kGeluCubic));
    const V z = in[0];
    const V square = hn::Mul(z, z);
    const V a = hn::Mul(z, hn::MulAdd(cubic, square, linear));
    const V s = Sigmoid(a);
    const V inner = hn::MulAdd(hn::Mul(cubic, hn::Set(d, 3.0f)), square, linear);
    // 1 - s would cancel. Where a factor vanishes, the square of a large z may not be finite and
    // must not count.
    const V rest = hn::Mul(s, Sigmoid(hn::Neg(a)));
    const V bent = hn::IfThenElseZero(hn::Gt(rest, hn::Zero(d)), hn::Mul(hn::Mul(z, rest), inner));
    out[0] = hn::Mul(hn::Mul(in[2], in[1]), hn::Add(s, bent));
    out[1] = hn::Mul(in[2], hn::Mul(z, s));
  }
};

void SiluMulAll(const float* gate, const float* up, int64_t count, float* y) {
  const float* const in[2] = {gate, up};
  float* const out[1] = {y};
  Map<2, 1>(in, out, static_cast<size_t>(count), SiluMulOp());
}

void SiluMulGradAll(const float* gate, const float* up, const float* dy, int64_t count,
                    float* dgate, float* dup) {
  const float* const in[3] = {gate, up, dy};
  float* const out[2] = {dgate, dup};
  Map<3, 2>(in, out, static_cast<size_t>(count), SiluMulGradOp());
}

void GeluMulAll(const float* gate, const float* up, int64_t count, float* y) {
  const float* const in[2] = {gate, up};
  float* const out[1] = {y};
  Map<2, 1>(in, out, static_cast<size_t>(count), GeluMulOp());
}

void GeluMulGradAll(const float* gate, const float* up, const float* dy, int64_t count,
                    float* dgate, float* dup) {
  const float* const in[3] = {gate, up, dy};
  float* const out[2] = {dgate, dup};
  Map<3, 2>(in, out, static_cast<size_t>(count), GeluMulGradOp());
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(SiluMulAll);
HWY_EXPORT(SiluMulGradAll);
HWY_EXPORT(GeluMulAll);
HWY_EXPORT(GeluMulGradAll);
HWY_EXPORT(Target);

void SiluMulFloat(const float* gate, const float* up, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(SiluMulAll)(gate, up, count, y);
}

void SiluMulGradFloat(const float* gate, const float* up, const float* dy, int64_t count,
                      float* dgate, float* dup) {
  HWY_DYNAMIC_DISPATCH(SiluMulGradAll)(gate, up, dy, count, dgate, dup);
}

void GeluMulFloat(const float* gate, const float* up, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(GeluMulAll)(gate, up, count, y);
}

void GeluMulGradFloat(const float* gate, const float* up, const float* dy, int64_t count,
                      float* dgate, float* dup) {
  HWY_DYNAMIC_DISPATCH(GeluMulGradAll)(gate, up, dy, count, dgate, dup);
}

int64_t ActKernelTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
