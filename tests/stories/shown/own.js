import { word } from "./word.js";
window.fromModule = word;
