import { expect, test } from "vitest";
import { nothingTold, type Piece, tokensOf, toolsOf, withPiece } from "./decide-answer.ts";

const pieceOf = (content: string, tokens: { token: string; logprob: number; bytes?: number[] }[] = []): Piece => ({
  delta: { content },
  finish_reason: null,
  ...(tokens.length === 0 ? {} : { logprobs: { content: tokens } }),
});

test("tokens have their probabilities; parts of one character are one, and what ends the answer is left out", () => {
  const [first, second, third] = [...new TextEncoder().encode("燕")] as [number, number, number];
  const told = [
    pieceOf("I am ", [
      { token: "I", logprob: Math.log(0.5) },
      { token: " am ", logprob: 0 },
    ]),
    pieceOf("", [{ token: "\uFFFD", logprob: Math.log(0.5), bytes: [first, second] }]),
    pieceOf("燕", [{ token: "\uFFFD", logprob: Math.log(0.5), bytes: [third] }]),
    { ...pieceOf("", [{ token: "<|im_end|>", logprob: 0 }]), finish_reason: "stop" },
  ].reduce(withPiece, nothingTold);
  expect(told).toMatchObject({ text: "I am 燕", finish: "stop" });
  const tokens = tokensOf(told);
  expect(tokens.map(({ text }) => text)).toEqual(["I", " am ", "燕"]);
  expect(tokens.map(({ probability }) => Number(probability.toFixed(4)))).toEqual([0.5, 1, 0.25]);
});

test("tokens that do not make up the text are not shown as if they did", () => {
  const told = withPiece(nothingTold, pieceOf("Wren", [{ token: "Bird", logprob: 0 }]));
  expect(tokensOf(told)).toEqual([]);
  expect(tokensOf(withPiece(nothingTold, pieceOf("Wren")))).toEqual([]);
});

test("calls of tools come in pieces", () => {
  const call = (piece: object): Piece => ({ delta: { tool_calls: [{ index: 0, function: piece }] }, finish_reason: null });
  const told = [call({ name: "look_up", arguments: '{"word' }), call({ arguments: '":"wren"}' })].reduce(withPiece, nothingTold);
  expect(told.calls).toEqual([{ name: "look_up", arguments: '{"word":"wren"}' }]);
});

test("tools are a JSON list of functions", () => {
  expect(toolsOf(" ")).toEqual([]);
  expect(toolsOf('[{"type":"function","function":{"name":"look_up","parameters":{}}}]')).toHaveLength(1);
  for (const wrong of ["{", "{}", '[{"type":"function"}]', '[{"name":"look_up"}]']) expect(toolsOf(wrong)).toBeUndefined();
});
