/** What tenants of the benchmark `scale:neighbour` ask of a gateway. */

interface BenchTenant {
  ask(path: string, body?: object | FormData): Promise<Response>;
  /** @returns the file's id. */
  upload(rows: number): Promise<string>;
  /** @returns the job's id. */
  job(file: string): Promise<string>;
  /** Milliseconds until the first byte, and until the last one. */
  chat(): Promise<{ first: number; whole: number }>;
}

export function benchTenant({ tenant, url, key, base }: { tenant: string; url: string; key: string; base: string }): BenchTenant {
  const ask = (path: string, body?: object | FormData): Promise<Response> =>
    fetch(`${url}${path}`, {
      ...(body === undefined ? {} : { method: "POST", body: body instanceof FormData ? body : JSON.stringify(body) }),
      headers: { authorization: `Bearer ${key}`, ...(body instanceof FormData ? {} : { "content-type": "application/json" }) },
    });
  const idOf = async (response: Response): Promise<string> => ((await response.json()) as { id: string }).id;
  let files = 0;
  return {
    ask,
    async upload(rows) {
      const form = new FormData();
      form.set("purpose", "fine-tune");
      form.set("file", new File([rowsOf(rows, `${tenant} ${files++}`)], "rows.jsonl"));
      return idOf(await ask("/v1/files", form));
    },
    job: async (file) => idOf(await ask("/v1/fine_tuning/jobs", { model: base, training_file: file, suffix: "bench" })),
    async chat() {
      const from = performance.now();
      const body = { model: base, stream: true, seed: 10, max_tokens: 10, messages: [{ role: "user", content: "ahoy" }] };
      const answer = await ask("/v1/chat/completions", body);
      let first = 0;
      for await (const _part of answer.body ?? []) if (first === 0) first = performance.now() - from;
      if (!answer.ok) throw new Error(`a chat got ${answer.status}`);
      return { first, whole: performance.now() - from };
    },
  };
}

const rowsOf = (count: number, about: string): string =>
  Array.from({ length: count }, (_, row) =>
    JSON.stringify({
      messages: [
        { role: "user", content: `What is ${row} of ${about}?` },
        { role: "assistant", content: `Arr, matey, that be number ${row} of ${about}.` },
      ],
    }),
  ).join("\n");
