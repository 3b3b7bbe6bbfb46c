// The graph's numbers by name, and the mean of windows over time; as answers_mtmm.py.

export const MODALITIES = ["audio", "text"];

/** The pipeline's answer for one input: of the whole, or of parts with times. */
export function summary(parts, config) {
  const shown = parts.every((part) => part.silent) ? {no_signal: true} : {};
  let whole = parts[0];
  if (parts[0].start !== null) {
    whole = mean(parts);
    shown.timeline = parts.map((part) => entry(part, config));
    const by = Map.groupBy(parts.filter((part) => part.speaker), (part) => part.speaker);
    if (by.size) {
      shown.speakers = Object.fromEntries([...by].map(([speaker, own]) => [speaker, {
        seconds: sum(own.map((part) => part.end - part.start)), ...named(mean(own), config),
      }]));
    }
  }
  return {
    ...named(whole, config),
    missing: MODALITIES.filter((name) => parts.every((part) => part.missing.includes(name))),
    untrained: config.output_names.filter((name) => !config.trained_outputs.includes(name)),
    ...unfamiliar(whole),
    ...(parts[0].untimed ? {untimed_text: true} : {}),
    ...(parts[0].reference ? {reference: parts[0].reference} : {}),
    ...shown,
  };
}

function entry(part, config) {
  return {
    start: part.start, end: part.end, ...(part.speaker ? {speaker: part.speaker} : {}),
    ...named(part, config), missing: part.missing, ...unfamiliar(part),
    ...(part.silent ? {no_signal: true} : {}), ...(part.text && !part.untimed ? {text: part.text} : {}),
  };
}

function named(one, config) {
  if (!one.probabilities.length) {
    const trained = config.dimension_names.filter((name) => config.trained_outputs.includes(name));
    return {emotion: null, scores: {}, ...Object.fromEntries(trained.map((name) => [name, null]))};
  }
  const answer = {};
  if (config.trained_outputs.includes("emotion")) {
    const ranked = one.probabilities.map((share, i) => [config.id2label[i], share]);
    ranked.sort((a, b) => b[1] - a[1]);
    const [emotion, highest] = ranked[0], unsure = highest < config.min_confidence;
    answer.emotion = unsure ? null : emotion;
    answer.scores = Object.fromEntries(ranked);
    if (config.min_confidence) answer.unsure = unsure;
    if (config.calibrated_on === "votes") answer.agreement = highest;
  }
  config.dimension_names.forEach((name, i) => {
    if (!config.trained_outputs.includes(name)) return;
    answer[name] = one.dimensions[i];
    if (one.deviations && config.rated_dimensions.includes(name))
      answer[`${name}_sd`] = one.deviations[i];
  });
  return answer;
}

function unfamiliar(one) {
  return one.distances ? {unfamiliar: MODALITIES.filter((_, i) => one.distances[i] > 1)} : {};
}

/** The mean over time; of distances the median, so that most of the time decides. */
function mean(all) {
  const heard = all.filter((part) => part.probabilities.length), parts = heard.length ? heard : [all[0]];
  const weights = timeWeights(parts);
  const of = (name) => parts[0][name]?.map((_, i) => sum(parts.map((p, j) => weights[j] * p[name][i])));
  return {
    probabilities: of("probabilities"), dimensions: of("dimensions"), deviations: of("deviations"),
    distances: parts[0].distances?.map((_, i) => median(parts.map((p) => p.distances[i]), weights)),
  };
}

/** The weighted median of what is no NaN; NaN without any. */
function median(values, weights) {
  const order = [...values.keys()].filter((i) => !Number.isNaN(values[i]));
  order.sort((a, b) => values[a] - values[b]);
  const half = sum(order.map((i) => weights[i])) / 2;
  let passed = 0;
  for (const i of order) {
    passed += weights[i];
    if (passed >= half) return values[i];
  }
  return NaN;
}

/** Each instant counts once, shared by the parts that overlap there. */
function timeWeights(parts) {
  const edges = [...new Set(parts.flatMap((part) => [part.start, part.end]))].sort((a, b) => a - b);
  const seconds = parts.map(() => 0);
  for (let i = 1; i < edges.length; i++) {
    const there = [...parts.keys()].filter((j) => parts[j].start < edges[i] && parts[j].end >= edges[i]);
    for (const j of there) seconds[j] += (edges[i] - edges[i - 1]) / there.length;
  }
  const total = sum(seconds);
  return seconds.map((own) => own / total);
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
