// The page: what the model can do is shown, forms become requests, events become entries of the history.

import { addAnswer, addDrawing } from "./history.js";
import { describe, post } from "./stream.js";

const MAX_SEED = 2 ** 32;
const byId = (id) => document.getElementById(id);
const drawForm = byId("draw");
const askForm = byId("ask");
const chosenFigure = byId("chosen");
const askProblem = askForm.querySelector(".problem");

/** The image to ask about: {url, base64, name}; null if there is none. */
let chosen = null;

function showProblem(message) {
  Object.assign(askProblem, { textContent: message, hidden: !message });
}

/** Shows the forms of the tasks that the model has, with its defaults and the server's limits. */
function showModel(model) {
  const does = model.tasks.map((task) => (task === "generation" ? "draws" : "answers")).join(" and ");
  byId("model").textContent =
    `${model.name} ${does}; images of ${model.image_px} × ${model.image_px} pixels;` +
    ` ${model.precision} on ${model.device}`;
  drawForm.hidden = !model.tasks.includes("generation");
  askForm.hidden = !model.tasks.includes("understanding");
  byId("guidance").value = model.draw.guidance;
  byId("draw-temperature").value = model.draw.temperature;
  byId("num-images").max = model.limits.max_images;
  byId("num-images").value = Math.min(4, model.limits.max_images);
  byId("ask-temperature").value = model.answer.temperature;
  byId("max-tokens").value = model.answer.max_tokens;
  byId("max-tokens").max = model.limits.max_answer_tokens;
  byId("file-limit").textContent = `PNG, JPEG or WebP, at most ${mebibytes(model.limits.max_image_bytes)}`;
}

function mebibytes(bytes) {
  return `${Math.round((bytes / 2 ** 20) * 10) / 10} MiB`;
}

function choose(url, name) {
  chosen = url && { url, name, base64: url.slice(url.indexOf(",") + 1) };
  chosenFigure.hidden = !chosen;
  chosenFigure.querySelector("img").src = url || "";
  chosenFigure.querySelector("figcaption").textContent = name;
}

/** Posts the request of an entry, and ends the entry with the request. */
async function run(entry, controller, path, body, onEvent) {
  try {
    await post(path, body, { signal: controller.signal, onEvent });
    entry.end();
  } catch (error) {
    entry.end(error.name === "AbortError" ? "Stopped." : error.message);
  }
}

function draw(model) {
  const prompt = byId("prompt").value;
  const numImages = Number(byId("num-images").value);
  const seed = byId("seed").value === "" ? Math.floor(Math.random() * MAX_SEED) : Number(byId("seed").value);
  const guidance = Number(byId("guidance").value);
  const temperature = Number(byId("draw-temperature").value);
  const controller = new AbortController();
  const entry = addDrawing({
    prompt,
    numImages,
    settings: `guidance ${guidance}, temperature ${temperature}`,
    onStop: () => controller.abort(),
    onAsk: model.tasks.includes("understanding") && askAbout,
  });
  const body = { prompt, num_images: numImages, sampling: { seed, guidance, temperature } };
  run(entry, controller, "api/draw", body, (event) => {
    if (event.event === "picture") entry.show(event);
    if (event.event === "failed") entry.fail(event.image, event.message);
  });
}

function askAbout(url, name) {
  byId("file").value = "";
  choose(url, name);
  byId("question").focus();
}

function ask() {
  const question = byId("question").value;
  const maxTokens = Number(byId("max-tokens").value);
  const temperature = Number(byId("ask-temperature").value);
  const seed = Math.floor(Math.random() * MAX_SEED);
  const controller = new AbortController();
  const entry = addAnswer({
    question,
    url: chosen.url,
    name: chosen.name,
    settings: `about ${chosen.name}${temperature ? `; temperature ${temperature}, seed ${seed}` : ""}`,
    onStop: () => controller.abort(),
  });
  const body = { image: chosen.base64, question, sampling: { max_tokens: maxTokens, temperature, seed } };
  run(entry, controller, "api/answer", body, (event) => {
    if (event.event === "text") entry.add(event.text);
  });
}

function read(file, limits) {
  choose(null, "");
  showProblem("");
  if (!file) return;
  if (file.size > limits.max_image_bytes) {
    const allowed = mebibytes(limits.max_image_bytes);
    showProblem(`${file.name} has ${mebibytes(file.size)}, this server reads ${allowed}. Choose a smaller image.`);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => choose(reader.result, file.name);
  reader.onerror = () => showProblem(`${file.name} cannot be read.`);
  reader.readAsDataURL(file);
}

/** Enter submits the prompt; Shift-Enter begins a line. */
function submitOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  drawForm.requestSubmit();
}

function listen(model) {
  drawForm.addEventListener("submit", (event) => {
    event.preventDefault();
    draw(model);
  });
  askForm.addEventListener("submit", (event) => {
    event.preventDefault();
    showProblem(chosen ? "" : "Choose an image first.");
    if (chosen) ask();
  });
  byId("prompt").addEventListener("keydown", submitOnEnter);
  byId("file").addEventListener("change", (event) => read(event.target.files[0], model.limits));
}

describe().then(
  (model) => {
    listen(model);
    showModel(model);
    document.body.dataset.ready = "true";
  },
  (error) => {
    byId("model").textContent = error.message;
  },
);
