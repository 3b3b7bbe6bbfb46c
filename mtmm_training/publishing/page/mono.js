// Channels as one, and whether there is a signal in them; as waveforms_mtmm.py.

const CHUNK = 16000; // samples in which channels are compared
const DEAD = 1e-4; // of the loudest channel's power: below, a channel carries nothing
const CANCELLED = 0.25; // power of the sum of channels ÷ sum of their powers; 1 of those that differ
const SILENT = 1e-4; // amplitude about the median
const EDGE = 200; // samples where a filter rings

/** The mean of the channels that carry something; the loudest alone where they cancel each other. */
export function mix({channels, rate}) {
  if (channels.length === 1) return channels[0];
  const powers = channels.map(() => 0), loudest = channels.map(() => 0);
  let cancelled = 0;
  for (let block = 0; block < channels[0].length; block += rate) { // a second, as files are read
    for (let first = block; first < block + rate; first += CHUNK) {
      const own = channels.map((one) => centred(one.subarray(first, Math.min(first + CHUNK, block + rate))));
      const of = own.map(power), together = power(own[0].map((_, i) => sum(own.map((one) => one[i]))));
      if (together < CANCELLED * sum(of)) cancelled += sum(of);
      of.forEach((value, i) => {
        powers[i] += value;
        loudest[i] = Math.max(loudest[i], value);
      });
    }
  }
  if (cancelled > sum(powers) / 10) return channels[powers.indexOf(Math.max(...powers))];
  const live = channels.filter((_, i) => loudest[i] > DEAD * Math.max(...loudest));
  const heard = live.length ? live : channels;
  return heard[0].map((_, i) => sum(heard.map((one) => one[i])) / heard.length);
}

/** Whether a waveform is more than silence, a constant, dither, or a click in those. */
export function hasSignal(waveform) {
  const heard = waveform.subarray(EDGE, Math.max(waveform.length - EDGE, EDGE));
  if (!heard.length) return true;
  const median = percentile(heard, 0.5);
  return percentile(heard.map((sample) => Math.abs(sample - median)), 0.99) > SILENT;
}

/** The value below which this share of the values lies. */
export function percentile(values, share) {
  const sorted = Float64Array.from(values).sort(), at = share * (values.length - 1);
  const below = Math.floor(at), above = Math.min(below + 1, values.length - 1);
  return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
}

function centred(samples) {
  const mean = sum(samples) / samples.length;
  return Float64Array.from(samples, (sample) => sample - mean);
}

const power = (samples) => samples.reduce((total, sample) => total + sample * sample, 0);
const sum = (values) => values.reduce((total, value) => total + value, 0);
