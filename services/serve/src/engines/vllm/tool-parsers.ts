/** Pure: which of vLLM's tool parsers reads the calls that a base writes, judged by its chat template. Names are those of vLLM 0.32. */

/** Every parser that vLLM brings along. */
export const vllmToolParsers: ReadonlySet<string> = new Set(
  (
    "apertus cohere_command3 cohere_command4 deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4 deepseek_v41 dots ernie45 functiongemma " +
    "gemma4 gigachat3 glm45 glm47 granite granite-20b-fc granite4 hermes hf hunyuan_a13b hy_v3 hy_v4 inkling internlm jamba k2_horizon " +
    "kimi_k2 kimi_k3 lfm2 ling3 llama3_json llama4_json llama4_pythonic longcat mimo minicpm5 minimax_m2 minimax_m3 mistral muse_glimmer " +
    "olmo3 openai phi4_mini_json plamo3 poolside_v1 pythonic qwen3_coder qwen3_json qwen3_xml seed_oss step3 step3p5 xlam"
  ).split(" "),
);

/**
 * Marks in templates that put tools before the model, in the order in which they are tried: `<tool_call>` stands in several families,
 * which write different things inside of it.
 */
const marks: readonly (readonly [parser: string, ...texts: string[]])[] = [
  ["qwen3_coder", "<tool_call>", "<function="],
  ["glm45", "<tool_call>", "<arg_key>"],
  ["hermes", "<tool_call>"],
  ["granite", "<|tool_call|>", "<|start_of_role|>"],
  ["mistral", "[TOOL_CALLS]"],
  ["kimi_k2", "<|tool_calls_section_begin|>"],
  ["lfm2", "<|tool_call_start|>"],
  ["internlm", "<|action_start|>", "<|plugin|>"],
  ["functiongemma", "<start_function_call>"],
  ["seed_oss", "<seed:tool_call>"],
  ["openai", "<|channel|>", "to=functions"],
  ["phi4_mini_json", "functools["],
  ["llama3_json", '{"name": function name, "parameters": dictionary of argument name and its value}'],
];

/** @returns null: the template has no place for tools, or writes calls in a way that no parser here is known to read. */
export function vllmToolParserOf(template: string | null): string | null {
  if (template === null || !/\btools\b/.test(template)) return null;
  return marks.find(([, ...texts]) => texts.every((text) => template.includes(text)))?.[0] ?? null;
}
