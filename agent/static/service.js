// Client of the service's HTTP API. It does not access the document.

const KEY = "evoke.key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Stores the API key until this tab is closed. */
export const useKey = (key) => sessionStorage.setItem(KEY, key);

/** Returns the stored session; null if the service has none with this id. */
export async function reload(session) {
  try {
    return await (await call("GET", `v1/sessions/${encodeURIComponent(session)}`)).json();
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Sends feedback on an item: like, dislike or seen. */
export const feedback = (session, item, kind) =>
  call("POST", `v1/sessions/${encodeURIComponent(session)}/feedback`, { item, kind });

/** Removes the constraint at `index`; resolves to the remaining ones. */
export async function relax(session, index) {
  const answer = await call("POST", `v1/sessions/${encodeURIComponent(session)}/relax`, { index });
  return (await answer.json()).constraints;
}

/** Sends a message; yields the chunks of the answer as they arrive. Aborting `signal` stops the model. */
export async function* ask({ session, user, message, signal }) {
  const body = { model: "evoke", stream: true, session, messages: [{ role: "user", content: message }] };
  if (user) body.user = user;
  const answer = await call("POST", "v1/chat/completions", body, signal);
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(answer.status, chunk.error.message);
    yield chunk;
  }
}

async function call(method, path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  const refusal = await answer.json().catch(() => null);
  throw new Refused(answer.status, refusal?.error?.message ?? `The service answered ${answer.status}.`);
}

/** Yields the `data:` fields of a server-sent event stream. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
