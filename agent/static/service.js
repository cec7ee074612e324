// The service's HTTP API as the page uses it. Nothing here touches the document.

const KEY = "evoke.key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Keep the API key for as long as this tab lives. */
export const useKey = (key) => sessionStorage.setItem(KEY, key);

/** The session as the service has it; null where it knows none by this id. */
export async function reload(session) {
  try {
    return await (await call("GET", `v1/sessions/${encodeURIComponent(session)}`)).json();
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Tell of one item: like, dislike or seen. */
export const feedback = (session, item, kind) =>
  call("POST", `v1/sessions/${encodeURIComponent(session)}/feedback`, { item, kind });

/** Lift the constraint at `index`; resolves to those left. */
export async function relax(session, index) {
  const answer = await call("POST", `v1/sessions/${encodeURIComponent(session)}/relax`, { index });
  return (await answer.json()).constraints;
}

/** Send a message; yields the chunks of the answer as they come. Aborting `signal` stops the model's work. */
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
  const said = await answer.json().catch(() => null);
  throw new Refused(answer.status, said?.error?.message ?? `The service answered ${answer.status}.`);
}

/** The `data:` fields of a server-sent event stream. */
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
