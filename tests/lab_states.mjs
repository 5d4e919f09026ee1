// Computes states of the lab in Node: node lab_states.mjs FOLDER MODULES < requests.json > answers.json
// A request is a state, or {gradient: state, score: number[]} for a backward pass at the clean crop.

import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { pathToFileURL } from "node:url";

const [folder, modules] = process.argv.slice(2);
const at = (name) => pathToFileURL(`${modules}/${name}`);
const { load } = await import(at("files.js")), { decode, encode, pass, pixelsOf, show } = await import(at("lab.js"));
const lab = await load(async (name) => {
  const file = await readFile(`${folder}/${name}`);
  return file.buffer.slice(file.byteOffset, file.byteOffset + file.length);
});
const base64 = (values) => Buffer.from(Float32Array.from(values).buffer).toString("base64");
const answers = JSON.parse(await text(process.stdin)).map((request) => {
  if (request.gradient) {
    const state = request.gradient, { cell } = lab.queries[state.spectrum][state.query];
    return { gradient: base64(pass(lab, pixelsOf(lab, cell), state).back(Float32Array.from(request.score))) };
  }
  const { image, feature, ...rest } = show(lab, request), link = encode(request, lab.hash);
  return { ...rest, clean: undefined, image: base64(image), feature: base64(feature), link, restored: decode(link, lab) };
});
console.log(JSON.stringify(answers));
