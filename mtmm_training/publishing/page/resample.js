// Resampling by a windowed sinc, whose passband and stopband are those of soxr's quality HQ.

const PASSBAND = 0.913; // of the lower rate's half; nothing is left above 1
const ATTENUATION_DB = 100;

/** Samples at another rate, Hz. */
export function resample(samples, from, to) {
  if (from === to) return samples;
  const narrow = Math.min(1, to / from), cutoff = narrow * (1 + PASSBAND) / 2;
  const half = Math.ceil((ATTENUATION_DB - 8) / (2.285 * Math.PI * narrow * (1 - PASSBAND)) / 2);
  const shared = divisor(from, to), phases = to / shared;
  const kernels = Array.from({length: phases}, (_, phase) => kernel(phase / phases, half, cutoff));
  const padded = new Float32Array(samples.length + 2 * half);
  padded.set(samples, half - 1);
  return Float32Array.from({length: Math.round(samples.length * to / from)}, (_, i) => {
    const first = Math.floor(i * from / to), weights = kernels[(i * (from / shared)) % phases];
    let sum = 0;
    for (let k = 0; k < weights.length; k++) sum += padded[first + k] * weights[k];
    return sum;
  });
}

/** The filter's weights of the samples around a place that lies so far behind one of them. */
function kernel(behind, half, cutoff) {
  const beta = 0.1102 * (ATTENUATION_DB - 8.7);
  return Float64Array.from({length: 2 * half}, (_, k) => {
    const t = k - half + 1 - behind, x = Math.PI * cutoff * t;
    const sinc = x ? Math.sin(x) / x : 1;
    return cutoff * sinc * bessel(beta * Math.sqrt(Math.max(0, 1 - (t / half) ** 2))) / bessel(beta);
  });
}

/** The modified Bessel function of order 0, by its series. */
function bessel(x) {
  let term = 1, sum = 1;
  for (let k = 1; term > 1e-12 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

const divisor = (a, b) => (b ? divisor(b, a % b) : a);
