// What llama.cpp makes of a GGUF file: ids of texts, and what it generates greedily after ids.
//
//     node llama_cpp.mjs node_modules/node-llama-cpp/dist/index.js question.json answer.json
import {readFileSync, writeFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const [packageFile, questionFile, answerFile] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(packageFile));
const {model: modelPath, texts, prompts, newTokens} = JSON.parse(readFileSync(questionFile, "utf-8"));

// "never" builds: a binary that doesn't fit is an error rather than an hour of compilation.
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, maxThreads: 1, logLevel: "error"});
const model = await llama.loadModel({modelPath});
const ids = texts.map((text) => model.tokenize(text, false));
const context = await model.createContext({
    contextSize: 256,
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
});
const generated = [];
for (const prompt of prompts) {
    const sequence = context.getSequence();
    const found = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        found.push(token);
        if (found.length === newTokens)
            break;
    }
    generated.push({ids: found, text: model.detokenize(found)});
    sequence.dispose();
}
writeFileSync(answerFile, JSON.stringify({bos: model.tokens.bos, eos: model.tokens.eos, ids, generated}));
process.exit(0);
