//! Element types: the run-time enum and the two traits that turn it into a Rust type.

use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

/// Storage type of a tensor, known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit float: masters, statistics, losses, optimizer state.
    F32,
    /// bfloat16: compute type on GPUs.
    BF16,
    /// IEEE half.
    F16,
    /// 64-bit float, on [`Device::Cpu`](crate::Device::Cpu) only: the oracle of tests.
    F64,
    /// Indices and offsets.
    I32,
    /// Image bytes.
    U8,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::F64 => 8,
            Self::U8 => 1,
        }
    }

    /// Suffix of kernel names and metadata: `f32`, `bf16`, ...
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::F64 => "f64",
            Self::I32 => "i32",
            Self::U8 => "u8",
        }
    }

    /// Whether gradients can exist in this type.
    pub const fn is_float(self) -> bool {
        !matches!(self, Self::I32 | Self::U8)
    }

    /// The type arithmetic, statistics and parameter gradients use for this storage: f64 for f64, else f32.
    pub const fn accumulate(self) -> Self {
        match self {
            Self::F64 => Self::F64,
            _ => Self::F32,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type a tensor can store.
pub trait Element: Pod + Send + Sync + PartialEq + fmt::Debug {
    /// Its run-time name.
    const DTYPE: DType;
}

/// Arithmetic type of a reference: f32, or f64 for the oracle.
pub trait Real: Float<Acc = Self> + num_like::Ops {}

/// A float storage type. References load through [`Float::get`], compute in `Acc`, store through [`Float::put`].
pub trait Float: Element {
    /// f32 for f32, bf16 and f16; f64 for f64.
    type Acc: Real;
    /// Widens to the arithmetic type.
    fn get(self) -> Self::Acc;
    /// Rounds to nearest even.
    fn put(value: Self::Acc) -> Self;
}

/// The operations references need from their arithmetic type.
pub mod num_like {
    use std::iter::Sum;
    use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

    /// Arithmetic of f32 and f64 under one name.
    pub trait Ops:
        Copy
        + PartialOrd
        + Default
        + Add<Output = Self>
        + Sub<Output = Self>
        + Mul<Output = Self>
        + Div<Output = Self>
        + Neg<Output = Self>
        + AddAssign
        + SubAssign
        + MulAssign
        + Sum
    {
        /// 0
        const ZERO: Self;
        /// 1
        const ONE: Self;
        /// -inf
        const NEG_INFINITY: Self;
        /// Converts a constant or a hyper-parameter.
        fn of(value: f64) -> Self;
        /// Widens for comparison and reporting.
        fn f64(self) -> f64;
        /// Square root.
        fn sqrt(self) -> Self;
        /// e to the power of self: for f32 branch-free, so that loops over it become vector code.
        fn exp(self) -> Self;
        /// Error function, likewise.
        fn erf(self) -> Self;
        /// `ln(1 + self)` of values from 0 to 1, keeping the digits of small ones; for f32 branch-free.
        fn ln_1p(self) -> Self;
        /// Natural logarithm.
        fn ln(self) -> Self;
        /// The larger; NaN of either side is kept.
        fn max(self, other: Self) -> Self;
        /// Absolute value.
        fn abs(self) -> Self;
    }

    macro_rules! ops {
        ($t:ty, $exp:path, $erf:path, $ln_1p:path) => {
            impl Ops for $t {
                const ZERO: Self = 0.0;
                const ONE: Self = 1.0;
                const NEG_INFINITY: Self = <$t>::NEG_INFINITY;
                #[inline(always)]
                fn of(value: f64) -> Self {
                    value as $t
                }
                #[inline(always)]
                fn f64(self) -> f64 {
                    self as f64
                }
                #[inline(always)]
                fn sqrt(self) -> Self {
                    <$t>::sqrt(self)
                }
                #[inline(always)]
                fn exp(self) -> Self {
                    $exp(self)
                }
                #[inline(always)]
                fn erf(self) -> Self {
                    $erf(self)
                }
                #[inline(always)]
                fn ln_1p(self) -> Self {
                    $ln_1p(self)
                }
                #[inline(always)]
                fn ln(self) -> Self {
                    <$t>::ln(self)
                }
                #[inline(always)]
                fn max(self, other: Self) -> Self {
                    // `<$t>::max` would drop a NaN on the left.
                    if other > self || other.is_nan() { other } else { self }
                }
                #[inline(always)]
                fn abs(self) -> Self {
                    <$t>::abs(self)
                }
            }
        };
    }
    ops!(f32, crate::math::exp, crate::math::erf, crate::math::ln_1p);
    ops!(f64, f64::exp, libm::erf, f64::ln_1p);
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f32 => F32, bf16 => BF16, f16 => F16, f64 => F64, i32 => I32, u8 => U8);

macro_rules! real {
    ($($t:ty),*) => { $(
        impl Real for $t {}
        impl Float for $t {
            type Acc = $t;
            #[inline(always)]
            fn get(self) -> $t { self }
            #[inline(always)]
            fn put(value: $t) -> $t { value }
        }
    )* };
}
real!(f32, f64);

macro_rules! half_float {
    ($($t:ty),*) => { $(
        impl Float for $t {
            type Acc = f32;
            #[inline(always)]
            fn get(self) -> f32 { self.to_f32() }
            #[inline(always)]
            fn put(value: f32) -> $t { <$t>::from_f32(value) }
        }
    )* };
}
half_float!(bf16, f16);

/// Runs `$body` with `$T` standing for the float type of `$dtype`: the only place that matches on a dtype.
/// Other dtypes give an argument error of `$op` for `$arg`.
#[macro_export]
#[doc(hidden)]
macro_rules! with_float {
    ($op:expr, $arg:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = ::half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = ::half::f16;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            other => Err($crate::Error::argument($op, $arg, "dtype", other.name(), "a float type")),
        }
    };
}
