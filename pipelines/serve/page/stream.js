// The API: JSON in, one JSON object per line out. Errors have messages for people.

const UNREACHABLE = "The server cannot be reached. Is it still running?";

/** Returns what the model can do. */
export async function describe() {
  return (await reach("api/model")).json();
}

/** Posts `body` and calls `onEvent` with each event. Ends when the server says so; throws an Error otherwise. */
export async function post(path, body, { signal, onEvent }) {
  const response = await reach(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(reader);
    if (done) throw new Error("The server has ended the request early. Is it still running?");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.event === "end") return;
      if (event.event === "error") throw new Error(event.message);
      onEvent(event);
    }
  }
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw readable(error);
  }
  if (response.ok) return response;
  const refusal = await response.json().catch(() => ({ message: `The server has answered ${response.status}.` }));
  throw new Error(refusal.message);
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw readable(error);
  }
}

function readable(error) {
  return error.name === "AbortError" ? error : new Error(UNREACHABLE);
}
