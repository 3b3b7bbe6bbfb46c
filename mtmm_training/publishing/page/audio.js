// Recordings: chosen or recorded, decoded by the browser.

const LONGEST_S = 600, SHORTEST_S = 0.3;
const SILENT = 1e-3; // the loudest sample of what counts as silence: −60 dB of full scale

const OTHER_RATE = 48000; // of files whose own rate is not read here; the browser resamples to it

/** The samples of each channel of a file, and their rate. */
export async function decode(file, shortest) {
  const content = await file.arrayBuffer(), rate = rateOf(new DataView(content)) ?? OTHER_RATE;
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(content);
  } catch {
    throw new Error(`${file.name} cannot be decoded as audio by this browser.`);
  }
  const lasts = decoded.duration, least = Math.max(SHORTEST_S, shortest);
  if (lasts < least || lasts > LONGEST_S)
    throw new Error(`${file.name} lasts ${lasts.toFixed(2)} s; from ${least} to ${LONGEST_S} s are taken here.`);
  const channels = Array.from({length: decoded.numberOfChannels}, (_, i) => decoded.getChannelData(i));
  if (!channels.some((one) => one.some((sample) => Math.abs(sample) >= SILENT)))
    throw new Error(`${file.name} is silent. Is the microphone muted? Record again.`);
  return {channels, rate};
}

/** The rate that the header of a wav or flac file states, if browsers take it. */
function rateOf(view) {
  const text = (at, length) => String.fromCharCode(...new Uint8Array(view.buffer, at, length));
  const head = text(0, Math.min(view.byteLength, 4096));
  const format = head.indexOf("fmt ");
  let rate;
  if (head.startsWith("RIFF") && format > 0 && format < 4000) rate = view.getUint32(format + 12, true);
  if (head.startsWith("fLaC") && head.length > 22) rate = view.getUint32(18) >>> 12;
  return rate >= 8000 && rate <= 96000 ? rate : undefined;
}

/** Records until its `stop` is called, which gives the file. */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({audio: {channelCount: 1}});
  const recorder = new MediaRecorder(stream), chunks = [];
  recorder.ondataavailable = ({data}) => chunks.push(data);
  recorder.start();
  return {
    stop: () => new Promise((resolve) => {
      recorder.onstop = () => {
        stream.getTracks().forEach((track) => track.stop());
        resolve(new File(chunks, "The recording", {type: recorder.mimeType}));
      };
      recorder.stop();
    }),
  };
}
