import { describe, expect, it } from "vitest";
import { judgePictures } from "./judge-pictures.ts";

const data = "data:image/png;base64,iVBORw0KGgo=";
const image = (url: unknown) => ({ type: "image_url", image_url: { url } });
const asked = (...content: unknown[]) => ({ model: "m", messages: [{ role: "user", content }] });
const sees = { pictures: 2 };

describe("judgePictures", () => {
  it("takes text of any kind from any base", () => {
    const plain = {
      model: "m",
      messages: [
        { role: "user", content: "data:image" },
        { role: "assistant", content: null },
      ],
    };
    const parts = asked({ type: "text", text: "image_url" }, { type: "refusal", refusal: "no" }, "plain");
    for (const engine of [undefined, {}, { pictures: 0 }, sees]) {
      for (const body of [plain, parts, { model: "m", prompt: "x" }]) expect(() => judgePictures(body, engine)).not.toThrow();
    }
  });

  it("takes as many pictures as the engine does, in all messages together", () => {
    expect(() => judgePictures(asked(image(data), { type: "text", text: "and" }, image(data)), sees)).not.toThrow();
    const two = [asked(image(data), image(data)), asked(image(data))].flatMap(({ messages }) => messages);
    expect(() => judgePictures({ model: "m", messages: two }, sees)).toThrow(
      expect.objectContaining({ status: 400, code: "picture_refused", message: expect.stringContaining("3 pictures") }),
    );
  });

  it.each([undefined, {}, { pictures: null }, { pictures: 0 }])("tells that a base takes none: %j", (engine) => {
    expect(() => judgePictures(asked(image(data)), engine)).toThrow(
      expect.objectContaining({ status: 400, code: "pictures_unsupported", param: "messages" }),
    );
  });

  it.each([
    "http://169.254.169.254/latest/meta-data",
    "https://example.com/x.png",
    "HTTPS://example.com/x.png",
    "file:///etc/passwd",
    "data:text/html;base64,AAAA",
    "data:image/svg+xml;base64,AAAA",
    " data:image/png;base64,AAAA",
    "data:image/png,raw",
    "",
    null,
    7,
  ])("never lets an engine fetch: %j", (url) => {
    expect(() => judgePictures(asked(image(url)), sees)).toThrow(expect.objectContaining({ status: 400, code: "picture_refused" }));
    // vLLM takes parts without a type, and one part without a list.
    expect(() => judgePictures(asked({ image_url: url }), sees)).toThrow(expect.objectContaining({ code: "picture_refused" }));
    const single = { model: "m", messages: [{ role: "user", content: image(url) }] };
    expect(() => judgePictures(single, sees)).toThrow(expect.objectContaining({ code: "picture_refused" }));
  });

  it.each([
    asked({ type: "image_url", uuid: "other-tenants-picture", image_url: null }),
    asked({ type: "text", text: "x", uuid: "1", image_pil: null }),
    asked({ type: "video_url", video_url: { url: "https://example.com" } }),
    asked({ type: "input_audio", input_audio: {} }),
    asked({ type: "image_embeds", image_embeds: "AAAA" }),
    asked({ type: "prompt_embeds", data: "AAAA" }),
    { ...asked(image(data)), mm_processor_kwargs: { size: { longest_edge: 100_000 } } },
    { ...asked(image(data)), media_io_kwargs: {} },
  ])("refuses what else vLLM would take: %j", (body) => {
    expect(() => judgePictures(body, sees)).toThrow(expect.objectContaining({ status: 400, code: "unsupported" }));
  });
});
