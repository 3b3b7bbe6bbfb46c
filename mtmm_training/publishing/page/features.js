// Waveforms and transcripts to the graph's inputs; as runtime/mtmm_runtime/features.py.

const LEAST_POWER = 1e-10; // of a band, before the logarithm
const LEAST_VARIANCE = 1e-7;

// Of recognisers, for language, emotion, events and times.
const MARKS = /<\|[^<>|]*\|>|\[_[A-Z]+_\d*\]|\[BLANK_AUDIO\]/g;

/** Transcript in NFKC, without marks; null if absent or blank. */
export function cleanTranscript(text) {
  const cleaned = (text ?? "").replace(MARKS, " ").normalize("NFKC").trim();
  return /[^\p{C}\p{Z}]/u.test(cleaned) ? cleaned : null;
}

/** Values, their axes, and the mask of a waveform; `audio` is the manifest's. */
export function audioFeatures(waveform, audio, arrays) {
  if (audio.kind === "waveform") {
    const values = audio.normalise ? normalised(waveform) : waveform;
    return {values, shape: [waveform.length], mask: new BigInt64Array(waveform.length).fill(1n)};
  }
  if (audio.kind !== "log-mel") throw new Error(`This page cannot make features of ${audio.kind}.`);
  return logMel(waveform, audio, arrays.mel_filters);
}

/** Of mean 0 and variance 1. */
function normalised(waveform) {
  let mean = 0, variance = 0;
  for (const sample of waveform) mean += sample / waveform.length;
  for (const sample of waveform) variance += (sample - mean) ** 2 / waveform.length;
  return waveform.map((sample) => (sample - mean) / Math.sqrt(variance + LEAST_VARIANCE));
}

/** Whisper's log-mel spectrum (mels, frames) of its whole window. */
function logMel(waveform, {window: size, hop, samples}, {values: filters, shape: [bins, mels]}) {
  const half = size / 2, frames = Math.floor(samples / hop);
  const padded = new Float64Array(samples + size);
  padded.set(waveform, half);
  for (let i = 1; i <= half; i++) { // as in a mirror, at both ends
    padded[half - i] = padded[half + i];
    padded[half + samples - 1 + i] = padded[half + samples - 1 - i];
  }
  const circle = {length: size};
  const cosine = Float64Array.from(circle, (_, n) => Math.cos(2 * Math.PI * n / size));
  const sine = Float64Array.from(circle, (_, n) => Math.sin(2 * Math.PI * n / size));
  const hann = cosine.map((value) => 0.5 - 0.5 * value);
  const values = new Float32Array(mels * frames).fill(Math.log10(LEAST_POWER));
  for (let frame = 0; frame < frames; frame++) {
    const cut = padded.subarray(frame * hop, frame * hop + size);
    if (!cut.some(Boolean)) continue; // behind the recording's end
    const power = spectrum(cut.map((sample, n) => sample * hann[n]), cosine, sine);
    for (let mel = 0; mel < mels; mel++) {
      let total = 0;
      for (let bin = 0; bin < bins; bin++) total += power[bin] * filters[bin * mels + mel];
      values[mel * frames + frame] = Math.log10(Math.max(total, LEAST_POWER));
    }
  }
  const floor = values.reduce((most, value) => Math.max(most, value), -Infinity) - 8;
  for (let i = 0; i < values.length; i++) values[i] = (Math.max(values[i], floor) + 4) / 4;
  const heard = Math.ceil(waveform.length / hop);
  return {values, shape: [mels, frames], mask: BigInt64Array.from({length: frames}, (_, i) => BigInt(i < heard))};
}

/** Power of each frequency of real samples, by the definition: even and odd halves are folded. */
function spectrum(samples, cosine, sine) {
  const size = samples.length, half = size / 2, power = new Float64Array(half + 1);
  const even = new Float64Array(half), odd = new Float64Array(half);
  for (let n = 1; n < half; n++) {
    even[n] = samples[n] + samples[size - n];
    odd[n] = samples[n] - samples[size - n];
  }
  for (let k = 0; k <= half; k++) {
    let real = samples[0] + samples[half] * (k % 2 ? -1 : 1), imaginary = 0;
    for (let n = 1, at = k; n < half; n++, at += k) {
      if (at >= size) at -= size;
      real += even[n] * cosine[at];
      imaginary += odd[n] * sine[at];
    }
    power[k] = real * real + imaginary * imaginary;
  }
  return power;
}
