/** Web pages: which may call the API, as their browsers ask for it. And what OpenAI offers and this API refuses by name. */
import { test } from "@loraline/testkit";
import { expect } from "vitest";
import { startGateway } from "./gateway-under-test.ts";

const page = "https://app.example.com";
const asks = (origin: string): RequestInit => ({
  method: "OPTIONS",
  headers: {
    origin,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
  },
});
const allowed = (answer: Response): string | null => answer.headers.get("access-control-allow-origin");

test("a page of an allowed origin may call the API and read its refusals, another one may not", async ({ nc, tenant }) => {
  await using line = await startGateway({ nc, tenant, projector: false, corsOrigins: [page, "http://localhost:3000"] });
  // A browser asks without the key.
  const preflight = await fetch(`${line.url}/v1/chat/completions`, asks(page));
  expect([preflight.status, allowed(preflight)]).toEqual([204, page]);
  expect(preflight.headers.get("access-control-allow-headers")).toBe("authorization,content-type,x-stainless-os");
  expect(preflight.headers.get("access-control-allow-methods")).toContain("DELETE");
  expect(preflight.headers.get("access-control-allow-credentials")).toBeNull();

  const answer = await line.fetch("/v1/models", { headers: { origin: "http://localhost:3000" } });
  expect([answer.status, allowed(answer)]).toEqual([200, "http://localhost:3000"]);
  expect(answer.headers.get("access-control-expose-headers")).toContain("x-request-id");
  const refused = await fetch(`${line.url}/v1/models`, { headers: { origin: page } });
  expect([refused.status, allowed(refused)]).toEqual([401, page]);

  for (const other of ["https://evil.example", "https://app.example.com.evil.example", "null"]) {
    expect(allowed(await fetch(`${line.url}/v1/models`, asks(other)))).toBeNull();
    expect(allowed(await line.fetch("/v1/models", { headers: { origin: other } }))).toBeNull();
  }
});

test("without the setting no page may call, and moderation is refused by name", async ({ nc, tenant }) => {
  await using line = await startGateway({ nc, tenant, projector: false });
  const preflight = await fetch(`${line.url}/v1/models`, asks(page));
  expect([preflight.status, allowed(preflight)]).toEqual([405, null]);
  expect(allowed(await line.fetch("/v1/models", { headers: { origin: page } }))).toBeNull();
  await expect(line.openai.moderations.create({ input: "hello" })).rejects.toMatchObject({
    status: 400,
    code: "unsupported",
    message: expect.stringContaining("/v1/moderations is not offered") as string,
  });
});
