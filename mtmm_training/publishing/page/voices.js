// What is usual for each speaker's voice, from the call itself; as reference_mtmm.py.

const LEAST_DEVIATION = 1e-4; // a feature that never changes is not blown up
const SKEWED = 0.2; // distance of mean answers, of which a half is then believed, where none was fitted
const SHRUNK = 1.2; // moods are further from the usual ones than unsure answers are

/** Adds a part's states to its speaker's: means over frames of states and answers. */
export function count(voices, part, index, heardUntil, config) {
  if (!part.frames) return;
  const answers = answersOf(part, config), voice = voices.get(part.speaker) ??
    {frames: 0, recordings: 0, seconds: 0, mean: part.states.map(() => 0), answers: answers.map(() => 0)};
  voices.set(part.speaker, voice);
  voice.frames += part.frames;
  voice.recordings += index === 0 ? 1 : 0;
  voice.seconds += Math.max(part.end - Math.max(part.start, heardUntil), 0);
  const share = part.frames / voice.frames;
  const move = (mean, values) => values.forEach((value, i) => { mean[i] += share * (value - mean[i]); });
  move(voice.mean, part.states);
  move(voice.answers, answers);
}

/** The probability of each emotion; of a model that has learned no emotion, the dimensions from -1 to 1. */
function answersOf({probabilities, dimensions}, {dimension_range: [low, high], trained_outputs}) {
  const heard = trained_outputs.includes("emotion"), centred = (d) => (d - (low + high) / 2) / ((high - low) / 2);
  return [...probabilities.map((p) => p * heard), ...dimensions.map((d) => centred(d) * !heard)];
}

/** What of a speaker's mean answers is taken for the mood of the recordings. */
function believed(answers, usual, skew) {
  if (!usual?.length) return answers;
  const apart = answers.map((answer, i) => answer - usual[i]);
  const far = apart.reduce((total, value) => total + value * value, 0) ** 2;
  const mood = apart.map((value) => (SHRUNK * value * far) / (far + skew ** 4));
  const most = Math.max(1, ...mood.map((value, i) => Math.abs(value + usual[i]))); // no more than what is labelled so
  return mood.map((value) => value / most);
}

/** Mean and deviation, (layers, width), by which a speaker's states are standardised. */
export function standardisation(voice, config, arrays) {
  const deviation = arrays.reference_deviation.values.map((value) => Math.max(value, LEAST_DEVIATION));
  const mood = believed(voice.answers, config.reference_answers, config.reference_skew ?? SKEWED);
  const expected = arrays.expected_states.values;
  const share = voice.frames / (voice.frames + config.reference_strengths[0]);
  const mean = arrays.reference_mean.values.map((own, i) => {
    const explained = mood.reduce((total, answer, a) => total + answer * expected[a * deviation.length + i], 0);
    return own + share * (voice.mean[i] - own - deviation[i] * explained);
  });
  return {mean, deviation};
}
