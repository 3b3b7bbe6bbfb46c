// Recordings: chosen or recorded, decoded by the browser, at the model's rate.

const LONGEST_S = 600, SHORTEST_S = 0.3;
const SILENT = 1e-3; // the loudest sample of what counts as silence: −60 dB of full scale

/** The channels of a file, samples at this rate; null where it is no audio. */
export async function decode(file, rate, shortest) {
  const decoder = new OfflineAudioContext(1, 1, rate);
  let decoded;
  try {
    decoded = await decoder.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} cannot be decoded as audio by this browser.`);
  }
  const lasts = decoded.duration, least = Math.max(SHORTEST_S, shortest);
  if (lasts < least || lasts > LONGEST_S)
    throw new Error(`${file.name} lasts ${lasts.toFixed(2)} s; from ${least} to ${LONGEST_S} s are taken here.`);
  const channels = Array.from({length: decoded.numberOfChannels}, (_, i) => decoded.getChannelData(i));
  if (!channels.some((one) => one.some((sample) => Math.abs(sample) >= SILENT)))
    throw new Error(`${file.name} is silent. Is the microphone muted? Record again.`);
  return channels;
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
