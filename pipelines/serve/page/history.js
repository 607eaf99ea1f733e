// The session's history: an entry per request, the newest first. All text is set as text, never as markup.

const MAX_ENTRIES = 50;

const list = document.getElementById("history");
const nothingYet = document.getElementById("nothing-yet");

/** Creates an element with attributes (properties of the DOM) and children. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Adds an entry of a task and returns it with `body` and `end(problem)`; `onStop` stops the request. */
function addEntry(task, title, settings, onStop) {
  const status = element("p", { className: "settings", textContent: settings });
  const problem = element("p", { className: "problem", role: "alert", hidden: true });
  const stop = element("button", { type: "button", textContent: "Stop", onclick: onStop });
  const body = element("div");
  const item = element(
    "li",
    { className: `card ${task}` },
    element("div", { className: "title" }, element("div", {}, element("h3", { textContent: title }), status), stop),
    body,
    problem,
  );
  item.setAttribute("aria-busy", "true");
  list.prepend(item);
  nothingYet.hidden = true;
  item.scrollIntoView({ block: "nearest" }); // on narrow screens the history is below the forms
  while (list.children.length > MAX_ENTRIES) list.lastChild.remove();
  return {
    body,
    end(message) {
      stop.remove();
      item.removeAttribute("aria-busy");
      if (message) Object.assign(problem, { textContent: message, hidden: false });
    },
  };
}

/** Adds a drawing of `numImages` images; `onAsk`, if given, is called with a data URL and a name. */
export function addDrawing({ prompt, settings, numImages, onStop, onAsk }) {
  const entry = addEntry("generation", prompt, settings, onStop);
  const figures = Array.from({ length: numImages }, () => {
    const image = element("img", { alt: "Not drawn yet" });
    const caption = element("figcaption", { textContent: "waiting" });
    return { image, caption, figure: element("figure", {}, image, caption) };
  });
  entry.body.className = "pictures";
  entry.body.append(...figures.map(({ figure }) => figure));
  return {
    ...entry,
    show({ image: index, seed, positions, of_positions: ofPositions, png }) {
      const { image, caption } = figures[index];
      const url = `data:image/png;base64,${png}`;
      const isDone = positions === ofPositions;
      Object.assign(image, { src: url, alt: isDone ? prompt : `${prompt}, unfinished` });
      if (!isDone) {
        caption.textContent = `seed ${seed}: ${positions} of ${ofPositions}`;
        return;
      }
      const name = `${prompt}, seed ${seed}`;
      const save = element("a", { textContent: "Save", href: url, download: `${fileName(name)}.png` });
      save.setAttribute("aria-label", `Save ${name}`);
      caption.replaceChildren(element("span", { textContent: `seed ${seed}` }), save);
      if (onAsk) {
        const ask = element("button", { type: "button", textContent: "Ask", onclick: () => onAsk(url, name) });
        ask.setAttribute("aria-label", `Ask about ${name}`);
        caption.append(ask);
      }
    },
    fail(index, message) {
      figures[index].caption.replaceChildren(element("span", { className: "problem", textContent: message }));
    },
    end(message) {
      for (const { caption } of figures) if (caption.textContent === "waiting") caption.textContent = "not drawn";
      entry.end(message);
    },
  };
}

/** Adds a question about the image at `url`. */
export function addAnswer({ question, settings, url, name, onStop }) {
  const entry = addEntry("understanding", question, settings, onStop);
  const answer = element("p", { className: "answer running" });
  answer.setAttribute("aria-live", "polite");
  entry.body.className = "asked";
  entry.body.append(element("img", { src: url, alt: name }), element("div", {}, answer));
  return {
    ...entry,
    add(text) {
      answer.append(text);
    },
    end(message) {
      answer.classList.remove("running");
      entry.end(message);
    },
  };
}

function fileName(text) {
  return text.replace(/[^\p{Letter}\p{Number}]+/gu, "-").slice(0, 80);
}
