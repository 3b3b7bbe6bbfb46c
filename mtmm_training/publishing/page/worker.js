// Loads the model and predicts beside the page, which stays responsive.

import {Predictor} from "./predictor.js";

const tell = (kind, content) => postMessage({kind, content});
const loading = Predictor.load(new URL("../", import.meta.url), (loaded, size) => tell("loading", {loaded, size}));
loading.then(
  ({manifest}) => tell("ready", manifest),
  (error) => tell("broken", error.message),
);

onmessage = async ({data: {recording, text, isCall, ownVoices}}) => {
  try {
    const predictor = await loading;
    const progress = (share) => tell("progress", share);
    tell("answer", await predictor.predict(recording, text, isCall, ownVoices, progress));
  } catch (error) {
    tell("refused", error.message);
  }
};
