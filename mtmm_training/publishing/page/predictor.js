// An exported model in the browser; as runtime/mtmm_runtime/predictor.py.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import {Tokenizer} from "./vendor/tokenizers.min.mjs";
import {MODALITIES, summary} from "./answers.js";
import {audioFeatures, cleanTranscript} from "./features.js";
import {count, standardisation} from "./voices.js";
import {parts} from "./windows.js";

const KNOWN_FORMAT = 1;
const FEW = {time: 4000, frames: 100, tokens: 2}; // the shape of a modality that is absent
const VALUES = {audio: "input_values", text: "input_ids"};

ort.env.wasm.numThreads = 1; // more need headers that free static hosts do not send
ort.env.wasm.wasmPaths = {wasm: new URL("vendor/ort-wasm-simd-threaded.wasm", import.meta.url)};

export class Predictor {
  /** Reads the export in a folder; `progress` as of `readWhole`. */
  static async load(folder, progress) {
    const file = (name) => new URL(name, folder);
    const manifest = await (await get(file("manifest.json"))).json();
    if (manifest.format > KNOWN_FORMAT) throw new Error("The model was exported by a newer version.");
    const arrays = readArrays(await (await get(file(manifest.arrays))).arrayBuffer());
    const tokenizer = new Tokenizer(await (await get(file(manifest.text.file))).json(), {});
    const graph = await readWhole(await get(file(manifest.graph.file)), progress);
    const session = await ort.InferenceSession.create(graph);
    return Object.assign(new Predictor(), {manifest, arrays, tokenizer, session});
  }

  /**
   * The pipeline's answer. `recording`: its channels and rate, null = none; `isCall`: a speaker on each;
   * `ownVoices`: each is heard against what is usual for the voice.
   */
  async predict(recording, said, isCall, ownVoices, progress) {
    const text = cleanTranscript(said), {audio, config} = this.manifest, voices = new Map(), found = [];
    const cut = recording ? parts(recording, text, isCall, audio) : [{text, start: null}];
    let done = 0;
    const heard = async (part, voice) => {
      const answered = await this.answer(part, voice);
      progress(++done / cut.length / (isCall && ownVoices ? 2 : 1));
      return answered;
    };
    if (isCall && ownVoices)
      for (const [i, part] of cut.entries()) count(voices, await heard(part), i, cut[i - 1]?.end ?? 0, config);
    for (const part of cut) found.push(await heard(part, voices.get(part.speaker)));
    return summary(found, config);
  }

  async answer({waveform, ...part}, voice) {
    if (part.silent && part.text === null) return {...part, missing: MODALITIES, probabilities: [], dimensions: []};
    const inputs = {};
    if (waveform) {
      const {values, shape, mask} = audioFeatures(waveform, this.manifest.audio, this.arrays);
      inputs.input_values = new ort.Tensor("float32", values, [1, ...shape]);
      inputs.audio_attention_mask = new ort.Tensor("int64", mask, [1, mask.length]);
      if (voice) {
        const {mean, deviation} = voice.usual ??= standardisation(voice, this.manifest.config, this.arrays);
        const whole = [1, ...this.arrays.reference_mean.shape];
        inputs.reference_mean = new ort.Tensor("float32", mean, whole);
        inputs.reference_deviation = new ort.Tensor("float32", deviation, whole);
        part.reference = {speaker: {recordings: voice.recordings, seconds: Math.round(100 * voice.seconds) / 100}};
      }
    }
    if (part.text !== null) {
      const ids = BigInt64Array.from(this.tokenizer.encode(part.text).ids, BigInt);
      const most = this.manifest.text.max_tokens;
      if (ids.length > most) throw new Error(`The text has ${ids.length} tokens; at most ${most} are taken.`);
      inputs.input_ids = new ort.Tensor("int64", ids, [1, ids.length]);
      inputs.attention_mask = new ort.Tensor("int64", ids.map(() => 1n), [1, ids.length]);
    }
    const missing = MODALITIES.filter((name) => !(VALUES[name] in inputs));
    const outputs = await this.session.run(this.#whole(inputs));
    const row = (name) => outputs[name] && Array.from(outputs[name].data);
    const probabilities = softmax(row("emotion_logits"), this.manifest.config.temperature);
    const dimensions = row("dimensions");
    if (![...probabilities, ...dimensions].every(Number.isFinite))
      throw new Error("The model's outputs are not finite; export it again, in float32.");
    const deviations = row("dimension_deviations"), distances = row("unfamiliarity");
    const frames = Number(row("state_frames")?.[0] ?? 0), states = frames ? row("state_mean") : null;
    return {...part, missing, probabilities, dimensions, deviations, distances, frames, states};
  }

  /** Inputs that are left out: an absent modality as zeros, a reference as NaN, which is the model's own. */
  #whole(inputs) {
    const whole = {...inputs};
    for (const [name, axes] of Object.entries(this.manifest.graph.inputs)) {
      if (name in whole) continue;
      const shape = [1, ...axes.slice(1).map((axis) => FEW[axis] ?? axis)];
      const size = shape.reduce((a, b) => a * b), isOwn = name.startsWith("reference_");
      whole[name] = isOwn || name === "input_values"
        ? new ort.Tensor("float32", new Float32Array(size).fill(isOwn ? NaN : 0), shape)
        : new ort.Tensor("int64", new BigInt64Array(size), shape);
    }
    return whole;
  }
}

function softmax(logits, temperature) {
  const highest = Math.max(...logits);
  const shares = logits.map((logit) => Math.exp((logit - highest) / temperature));
  const total = shares.reduce((a, b) => a + b);
  return shares.map((share) => share / total);
}

/** The float32 arrays of a file of safetensors, by name. */
function readArrays(content) {
  const begins = 8 + Number(new DataView(content).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(content.slice(8, begins)));
  delete header.__metadata__;
  return Object.fromEntries(Object.entries(header).map(([name, {shape, data_offsets: [first, last]}]) =>
    [name, {shape, values: new Float32Array(content.slice(begins + first, begins + last))}]));
}

async function get(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname} cannot be loaded (${response.status}).`);
  return response;
}

/** A response's bytes, while `progress` is told how many are there, of how many; 0 where that is unknown. */
async function readWhole(response, progress) {
  const size = Number(response.headers.get("content-length")), chunks = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ;) {
    const {done, value} = await reader.read();
    if (done) return new Uint8Array(await new Blob(chunks).arrayBuffer());
    chunks.push(value);
    progress(loaded += value.length, size);
  }
}
