// How recordings are cut, and who speaks when in a call with a speaker on each channel; as
// timeline_mtmm.py and speakers_mtmm.py.

import {hasSignal, mix, percentile} from "./mono.js";
import {resample} from "./resample.js";

const WINDOW_S = 6; // a little more than a mean utterance of the training corpora
const PAUSE_S = 1; // a longer silence ends a speaker's turn
const FRAME_S = 0.1; // in which a channel's level is measured
const LEVEL_DB = -50; // of full scale, below which nobody speaks
const BELOW_LOUD_DB = 25; // nor so far below the channel's loud frames
const CROSSTALK_DB = 10; // nor where another channel is louder by this
const SHORTEST_TURN_S = 0.3;

/**
 * Parts {waveform, text, start, end, untimed, speaker, silent} of a recording; `audio` is the manifest's.
 * A part without a signal has no waveform, and is `silent`.
 */
export function parts(recording, text, isCall, audio) {
  return cutParts(recording, text, isCall, audio).map((part) => {
    const silent = !hasSignal(part.waveform);
    return {...part, silent, waveform: silent ? null : part.waveform};
  });
}

function cutParts(recording, text, isCall, audio) {
  const {sampling_rate: rate, longest_s: longest} = audio;
  const heard = isCall ? recording.channels : [mix(recording)];
  const channels = heard.map((own) => resample(own, recording.rate, rate));
  const lasts = recording.channels[0].length / recording.rate;
  if (!isCall && lasts <= longest) return [{waveform: channels[0], text, start: null, end: null}];
  const window = isCall ? longest : Math.min(WINDOW_S, longest);
  const untimed = text !== null && lasts > window;
  const turns = isCall ? channelTurns(channels, rate) : [{start: 0, end: lasts, channel: 0}];
  if (!turns.length) throw new Error("Nobody speaks on any channel.");
  return turns.flatMap(({start, end, channel}) => {
    const first = Math.round(start * rate), samples = channels[channel].subarray(first, Math.round(end * rate));
    const speaker = isCall ? `channel ${channel + 1}` : null;
    return cut(samples, Math.round(window * rate), Math.round(audio.shortest_s * rate)).map(
      ([from, to]) => ({
        waveform: samples.subarray(from, to), text, untimed, speaker,
        start: first / rate + from / rate, end: first / rate + to / rate,
      }),
    );
  });
}

/** First and last sample of each window; the last one ends where the recording ends. */
function cut({length}, window, shortest) {
  const found = [];
  let heard = 0;
  for (; heard + window <= length; heard += window) found.push([heard, heard + window]);
  if (length - heard >= shortest || (!heard && length)) found.push([Math.max(length - window, 0), length]);
  return found;
}

/** Where somebody speaks on each channel, by its level in frames, in order. */
function channelTurns(channels, rate) {
  const levels = channels.map((channel) => levelsOf(channel, Math.round(FRAME_S * rate)));
  const end = channels[0].length / rate;
  const turns = levels.flatMap((own, channel) => {
    const loud = Math.max(percentile(own, 0.95) - BELOW_LOUD_DB, LEVEL_DB), found = [];
    own.forEach((level, i) => {
      if (level <= loud || level <= Math.max(...levels.map((one) => one[i])) - CROSSTALK_DB) return;
      const last = found.at(-1), start = i * FRAME_S;
      if (last && start - last.end <= PAUSE_S) last.end = (i + 1) * FRAME_S;
      else found.push({start, end: (i + 1) * FRAME_S, channel});
    });
    return found.filter((turn) => turn.end - turn.start >= SHORTEST_TURN_S);
  });
  for (const turn of turns) turn.end = Math.min(turn.end, end);
  return turns.sort((a, b) => a.start - b.start || a.end - b.end);
}

/** Of each frame, dB of full scale. */
function levelsOf(samples, size) {
  return Array.from({length: Math.floor(samples.length / size)}, (_, i) => {
    const frame = samples.subarray(i * size, (i + 1) * size);
    return 10 * Math.log10(frame.reduce((sum, sample) => sum + sample * sample, 0) / size + 1e-12);
  });
}
